#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The whole core by dlopen and dlsym alone: no header, no macro, no inline is needed to use it.

What another language's binding does: numbers and layouts written down once, calls found by name. TAP on
standard output. usage: bindings.py LIBRARY VERSION_SCRIPT
"""
import ctypes as c
import errno
import mmap
import os
import re
import select
import socket
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from stage import Tap  # noqa: E402

PAGE = os.sysconf("SC_PAGE_SIZE")

# Features, modes, kinds of answers: as man libuffd says, equal to the kernel's bits where it has them.
WP, SIGBUS, POISON, WP_ASYNC, MOVE = (1 << bit for bit in (0, 7, 14, 15, 16))
MISSING, PROTECT = 1, 2
FAULT, COPY, WRITTEN = 0x12, 1, 1 << 1
BUS_ADRERR = 2


class OpenOpts(c.Structure):
    _fields_ = [("size", c.c_uint32), ("flags", c.c_uint32), ("required", c.c_uint64),
                ("optional", c.c_uint64), ("report", c.c_uint64)]


class Answer(c.Structure):
    _fields_ = [("size", c.c_uint32), ("kind", c.c_uint32), ("start", c.c_uint64), ("len", c.c_uint64),
                ("flags", c.c_uint64), ("page_size", c.c_uint64), ("data", c.c_uint64)]


class Event(c.Structure):
    _fields_ = [("type", c.c_uint32), ("reserved", c.c_uint32), ("words", c.c_uint64 * 7)]


class ScanArgs(c.Structure):
    _fields_ = [("size", c.c_uint32), ("reserved", c.c_uint32), ("flags", c.c_uint64), ("start", c.c_uint64),
                ("end", c.c_uint64), ("all", c.c_uint64), ("any", c.c_uint64), ("inverted", c.c_uint64),
                ("report", c.c_uint64)]


class ScanRange(c.Structure):
    _fields_ = [("start", c.c_uint64), ("end", c.c_uint64), ("categories", c.c_uint64)]


class Peer(c.Structure):
    _fields_ = [("size", c.c_uint32), ("pid", c.c_int32), ("uid", c.c_uint32), ("gid", c.c_uint32),
                ("pidfd", c.c_int32), ("by_number", c.c_uint32)]


CAPS_SIZE = 112

# Parameters by letter: p pointer or handle, o where a handle goes, q 64 bits, z size_t, n where a size_t goes,
# i int, u 32 bits; before the colon what comes back: i int, q 64 bits, s text, - nothing.
CALLS = {
    "libuffd_open": "i:po", "libuffd_adopt": "i:ipo", "libuffd_close": "-:p", "libuffd_fd": "i:p",
    "libuffd_features": "q:p", "libuffd_ioctls": "q:p", "libuffd_way": "i:p", "libuffd_probe": "i:p",
    "libuffd_feature_name": "s:q", "libuffd_mode_name": "s:q", "libuffd_ioctl_name": "s:q",
    "libuffd_fault_name": "s:q", "libuffd_event_name": "s:u", "libuffd_page_name": "s:q",
    "libuffd_cure_text": "s:q", "libuffd_version": "s:",
    "libuffd_register": "i:pqqqp", "libuffd_unregister": "i:pqq",
    "libuffd_read_events": "i:ppz", "libuffd_decode": "i:pzp",
    "libuffd_copy": "i:pqpzqn", "libuffd_zeropage": "i:pqzqn", "libuffd_move": "i:pqqzqn",
    "libuffd_continue": "i:pqzqn", "libuffd_poison": "i:pqzqn", "libuffd_writeprotect": "i:pqzq",
    "libuffd_rwprotect": "i:pqzq", "libuffd_wake": "i:pqz", "libuffd_set_mode": "i:pqq",
    "libuffd_resolve": "i:ppn", "libuffd_sigbus": "i:ppzqi",
    "libuffd_scan_open": "i:io", "libuffd_scan_open_pagemap": "i:io",
    "libuffd_scan_categories": "q:p", "libuffd_scan": "i:pppzp",
    "libuffd_scan_close": "-:p",
    "libuffd_send": "i:ippz", "libuffd_recv": "i:ipzno", "libuffd_recv_more": "i:ipzqn",
    "libuffd_peer": "i:iqp",
}
LETTERS = {"p": c.c_void_p, "o": c.POINTER(c.c_void_p), "q": c.c_uint64, "z": c.c_size_t,
           "n": c.POINTER(c.c_size_t), "i": c.c_int, "u": c.c_uint32, "s": c.c_char_p, "-": None}
BACK = {**LETTERS, "i": c.c_int}

called = set()


class Library:
    """The calls by name; which of them were made is kept."""

    def __init__(self, path):
        self.lib = c.CDLL(path)

    def __getattr__(self, name):
        function = getattr(self.lib, "libuffd_" + name)
        back, parameters = CALLS["libuffd_" + name].split(":")
        function.argtypes = [LETTERS[letter] for letter in parameters]
        function.restype = BACK[back]
        called.add("libuffd_" + name)
        return function


class Wrong(Exception):
    pass


def expect(what, got, *wanted):
    if got not in wanted:
        raise Wrong(f"{what}: {got}, not {' or '.join(map(str, wanted))}")


def opened(lib, optional=0, required=0):
    """A handle of our own; one for user space alone will do here."""
    opts, out = OpenOpts(c.sizeof(OpenOpts), 1, required, optional, 0), c.c_void_p()
    expect("open", lib.open(c.byref(opts), c.byref(out)), 0)
    return out


class Memory:
    """Pages that are not there yet."""

    def __init__(self, pages):
        self.map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        anchor = c.c_char.from_buffer(self.map)
        self.start, self.len = c.addressof(anchor), pages * PAGE
        del anchor

    def at(self, page):
        return self.start + page * PAGE


def toucher(address, seen):
    """A thread that reads a byte; the C call lets go of Python's lock while it waits."""
    libc = c.CDLL(None)
    libc.memcpy.argtypes = [c.c_void_p, c.c_void_p, c.c_size_t]
    byte = c.create_string_buffer(1)

    def touch():
        libc.memcpy(byte, address, 1)
        seen.append(byte.raw[0])

    thread = threading.Thread(target=touch)
    thread.start()
    return thread


def names(lib):
    expect("feature", lib.feature_name(WP), b"pagefault-flag-wp")
    expect("no feature", lib.feature_name(1 << 63), None)
    expect("mode", lib.mode_name(MISSING), b"missing")
    expect("ioctl", lib.ioctl_name(1 << 3), b"copy")
    expect("fault", lib.fault_name(1), b"write")
    expect("event", lib.event_name(FAULT), b"fault")
    expect("page", lib.page_name(WRITTEN), b"written")
    expect("cure", bool(lib.cure_text(1)), True)
    expect("version", bool(re.fullmatch(rb"\d+\.\d+\.\d+", lib.version())), True)


def what_the_machine_can_do(lib):
    caps = (c.c_uint32 * (CAPS_SIZE // 4))()
    caps[0] = CAPS_SIZE
    expect("probe", lib.probe(c.byref(caps)), 0)
    expect("the page size", caps[CAPS_SIZE // 4 - 1], PAGE)


def a_fault_from_touch_to_answer(lib):
    u, m, seen, done = opened(lib), Memory(4), [], c.c_size_t(1)
    ioctls, event, data = c.c_uint64(), Event(), c.create_string_buffer(b"\x2a" * PAGE, PAGE)
    expect("way", lib.way(u) in (0, 1, 2), True)
    expect("ioctls", lib.ioctls(u) & 3, 3)
    expect("nothing yet", lib.read_events(u, c.byref(event), 1), -errno.EAGAIN)
    expect("register", lib.register(u, m.start, m.len, MISSING, c.byref(ioctls)), 0)
    expect("what the range offers", bool(ioctls.value & 1 << 3), True)
    thread = toucher(m.at(1), seen)
    select.select([lib.fd(u)], [], [])
    expect("read_events", lib.read_events(u, c.byref(event), 1), 1)
    expect("event", (event.type, event.words[0]), (FAULT, m.at(1)))
    expect("copy", lib.copy(u, m.at(1), data, PAGE, 0, c.byref(done)), 0)
    thread.join()
    expect("what was read, and progress", (seen, done.value), ([0x2a], PAGE))

    expect("zeropage", lib.zeropage(u, m.at(0), PAGE, 0, c.byref(done)), 0)
    expect("the same again", lib.zeropage(u, m.at(0), PAGE, 0, c.byref(done)), -errno.EEXIST)
    expect("wake", lib.wake(u, m.start, m.len), 0)
    answer = Answer(c.sizeof(Answer), COPY, m.at(2), PAGE, 0, 0, c.addressof(data))
    expect("resolve", lib.resolve(u, c.byref(answer), c.byref(done)), 0)
    resume = getattr(lib, "continue")  # a word of Python's
    expect("no page cache here", resume(u, m.at(3), PAGE, 0, c.byref(done)), -errno.EINVAL)
    expect("unregister", lib.unregister(u, m.start, m.len), 0)
    lib.close(u)


def an_answer_in_the_thread_itself(lib):
    u, m = opened(lib, required=SIGBUS), Memory(2)
    data = c.create_string_buffer(b"\x2b" * m.len, m.len)
    expect("register", lib.register(u, m.start, m.len, MISSING, None), 0)
    region = Answer(c.sizeof(Answer), COPY, m.start, m.len, 0, 0, c.addressof(data))
    expect("sigbus", lib.sigbus(u, c.byref(region), 0, m.at(1) + 5, BUS_ADRERR), 1)
    expect("of another's", lib.sigbus(u, c.byref(region), 0, m.start - 1, BUS_ADRERR), 0)
    expect("the byte", c.string_at(m.at(1), 1), b"\x2b")
    lib.close(u)


def poison_and_move(lib):
    u, m, done = opened(lib, optional=POISON | MOVE), Memory(4), c.c_size_t()
    expect("register", lib.register(u, m.start, 2 * PAGE, MISSING, None), 0)
    has = lib.features(u)
    expect("poison", lib.poison(u, m.at(0), PAGE, 0, c.byref(done)),
           *([0] if has & POISON else [-errno.ENOTTY, -errno.EINVAL]))
    c.memset(m.at(2), 0x2c, PAGE)
    expect("move", lib.move(u, m.at(1), m.at(2), PAGE, 0, c.byref(done)),
           *([0] if has & MOVE else [-errno.ENOTTY, -errno.EINVAL]))
    if has & MOVE:
        expect("the byte", c.string_at(m.at(1), 1), b"\x2c")
    lib.close(u)


def written_pages(lib):
    u, m, scanner, walked = opened(lib, optional=WP | WP_ASYNC), Memory(4), c.c_void_p(), c.c_uint64()
    has = lib.features(u)
    c.memset(m.start, 1, m.len)
    if has & WP:
        expect("register", lib.register(u, m.start, m.len, PROTECT, None), 0)
        expect("writeprotect", lib.writeprotect(u, m.start, m.len, 1), 0)
    else:
        expect("not registered", lib.writeprotect(u, m.start, m.len, 1), -errno.ENOENT, -errno.EINVAL)
    expect("scan_open", lib.scan_open(0, c.byref(scanner)), *([0] if has & WP_ASYNC else [0, -errno.ENOTTY]))
    if has & WP_ASYNC:
        c.memset(m.at(2), 2, 1)
        found = (ScanRange * 4)()
        args = ScanArgs(c.sizeof(ScanArgs), 0, 0, m.start, m.start + m.len, WRITTEN, 0, 0, WRITTEN)
        expect("categories", bool(lib.scan_categories(scanner) & WRITTEN), True)
        expect("scan", lib.scan(scanner, c.byref(args), found, 4, c.byref(walked)), 1)
        expect("what was written", (found[0].start, found[0].end), (m.at(2), m.at(3)))
    else:
        lib.scan_categories(scanner)
        expect("no scanner", lib.scan(None, None, None, 0, None), -errno.EINVAL)
    lib.scan_close(scanner)
    expect("scan_open_pagemap", lib.scan_open_pagemap(0, c.byref(scanner)), 0)
    expect("what it can tell", bool(lib.scan_categories(scanner)), True)
    lib.scan_close(scanner)
    lib.close(u)


def used_pages(lib):
    """Of 7.3; before that these calls say so."""
    u, m = opened(lib), Memory(1)
    c.memset(m.start, 1, m.len)
    expect("rwprotect", lib.rwprotect(u, m.start, m.len, 1), -errno.ENOTTY, -errno.EINVAL, -errno.ENOENT)
    expect("set_mode", lib.set_mode(u, 0, 0), -errno.ENOTTY, -errno.EINVAL, 0)
    lib.close(u)


def to_another_and_back(lib):
    u, other, got, done = opened(lib), c.c_void_p(), c.c_size_t(), c.c_size_t()
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    peer, text = Peer(c.sizeof(Peer)), c.create_string_buffer(4)
    expect("send", lib.send(a.fileno(), u, b"word", 4), 0)
    expect("recv", lib.recv(b.fileno(), text, 2, c.byref(got), c.byref(other)), 0)
    expect("recv_more", lib.recv_more(b.fileno(), c.addressof(text) + got.value, 4 - got.value, 1,
                                      c.byref(done)), 0)
    expect("the payload", text.raw, b"word")
    expect("its features", lib.features(other), lib.features(u))
    expect("peer", lib.peer(a.fileno(), 1, c.byref(peer)), 0)
    expect("who", peer.pid, os.getpid())
    lib.close(other)
    expect("adopt", lib.adopt(os.dup(lib.fd(u)), None, c.byref(other)), 0)
    lib.close(other)
    lib.close(u)
    a.close()
    b.close()


def a_message_by_hand(lib):
    message, event = bytearray(32), Event()
    message[0], message[16:24] = FAULT, (PAGE * 5).to_bytes(8, sys.byteorder)
    expect("decode", lib.decode(bytes(message), 32, c.byref(event)), 0)
    expect("event", (event.type, event.words[0]), (FAULT, PAGE * 5))
    expect("too short", lib.decode(bytes(message), 31, c.byref(event)), -errno.EBADMSG, -errno.EINVAL)


def main():
    lib, tap = Library(sys.argv[1]), Tap()
    for case in (names, what_the_machine_can_do, a_fault_from_touch_to_answer, an_answer_in_the_thread_itself,
                 poison_and_move, written_pages, used_pages, to_another_and_back, a_message_by_hand):
        try:
            case(lib)
            tap.case(case.__name__.replace("_", " "), None)
        except Wrong as wrong:
            tap.case(case.__name__.replace("_", " "), [wrong])
    with open(sys.argv[2], encoding="utf-8") as f:
        exported = set(re.findall(r"^\t(libuffd_\w+);", f.read(), flags=re.M))
    tap.case("every call was made", [f"{name} was not" for name in sorted(exported - called)])
    tap.finish()


main()
