# SPDX-License-Identifier: MIT
"""A process whose memory moves while it runs. Arguments: uffd-info, helper, postcopy."""

import contextlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading

import common
from common import Skip, check, equal, run

INFO, WITHOUT, POSTCOPY = [os.path.abspath(a) for a in sys.argv[1:4]]
PAGE = os.sysconf("SC_PAGESIZE")
MIB = 1 << 20

# What the two say to each other: examples/postcopy.c has the same.
HELLO, PAGES, SWITCH, ALL, READY, RESUMED, NEED, COMPLETE, RESULT = range(1, 10)
MAGIC, VERSION = 0x79706F6374736F70, 1
HEADER = struct.Struct("=IIQ")
HELLO_BODY = struct.Struct("=QQQQQ")
RESULT_SIZE = 7 * 8

copies = common.Copies(WITHOUT, POSTCOPY)
scratch = tempfile.mkdtemp(prefix="libuffd-test-")
os.chmod(scratch, 0o755)


def needs_userfaultfd():
    result = run([INFO, "--require", "user-mode"])
    if result.returncode:
        raise Skip("no userfaultfd to be had: " + " ".join(result.stderr.split()))


def needs_tracking():
    needs_userfaultfd()
    if run([INFO, "--require", "wp-async,pagemap-scan"]).returncode:
        raise Skip("this kernel cannot tell cheaply what was written")


def moved(*args, runner=run):
    """Both sides in one command: what came of it."""
    result = runner([POSTCOPY, "--json", *args])
    equal((result.returncode, result.stderr), (0, ""), args)
    told = json.loads(result.stdout)
    check(told["equal"], told)
    # Each page that was left exactly once: sent, and put into place.
    equal(told["asked"] + told["unasked"], told["left"], told)
    equal(told["installed"], told["left"], told)
    check(told["steps"] >= told["steps_before"] + 100000 or "--steps" in args, told)
    return told


# ---- It moves -----------------------------------------------------------------------------------


def a_process_moves_while_it_runs():
    needs_userfaultfd()
    for seed in ("1", "2", "3"):
        told = moved("--size", "16", "--seed", seed)
        equal(told["pages"], 16 * MIB // PAGE)
        check(told["steps_before"] >= 100000, told)


def most_of_it_goes_before_the_switch():
    needs_tracking()
    told = moved("--size", "16", "--hot", "5")
    check(told["tracked"], told)
    equal(told["rounds"][0], told["pages"])
    # Of every 20 pages one is written to. The others were sent once, and are not sent again.
    hot = -(-told["pages"] // 20)
    check(0 < told["left"] <= hot, told)
    check(len(told["rounds"]) <= 5 and all(n <= hot for n in told["rounds"][1:]), told)


def rounds_can_be_limited():
    needs_tracking()
    equal(len(moved("--size", "4", "--rounds", "1")["rounds"]), 1)
    told = moved("--size", "4", "--rounds", "0")
    equal((told["rounds"], told["left"]), ([], told["pages"]))


def where_writes_cannot_be_told_all_comes_after_the_switch():
    needs_userfaultfd()
    told = moved("--size", "4", "--no-tracking")
    equal((told["tracked"], told["rounds"], told["left"]), (False, [], told["pages"]))


def what_is_missed_is_asked_for():
    """Slowly in the background: the worker does not wait for that."""
    needs_userfaultfd()
    told = moved("--size", "4", "--rounds", "0", "--rate", "1")
    check(told["asked"] > 0 and told["faults"] > 0, told)
    check(0 < told["p50_below_us"] <= told["p99_below_us"], told)


def nothing_that_is_written_is_lost():
    """All of the table is written to all of the time, a large part of it, or one page."""
    needs_userfaultfd()
    for hot in ("100", "50", "1"):
        moved("--size", "1", "--hot", hot, "--rounds", "32", "--steps", "0")
        moved("--size", "8", "--hot", hot, "--rounds", "3")


def another_user_can_do_it():
    needs_userfaultfd()

    def runner(argv):
        result = copies.as_nobody([copies.path(argv[0]), *argv[1:]])
        if result.returncode == 1 and "userfaultfd" in result.stderr:
            raise Skip("user mode is refused here: " + result.stderr.strip())
        return result

    moved("--size", "4", runner=runner)


def the_text_says_what_was_done():
    needs_userfaultfd()
    result = run([POSTCOPY, "--size", "2"])
    equal((result.returncode, result.stderr), (0, ""))
    for pattern in (r"^table +2 MiB in \d+ pages, of which every 10\. is written to$",
                    r"^pre-copy +[\d.]+ s, pages: ", r"^switch +\d+ pages left, .* for [\d.]+ ms$",
                    r"^post-copy +[\d.]+ s: \d+ pages were asked for, \d+ came unasked",
                    r"^faults +\d+, p50 below", r"^verified +\d+ steps, done again: equal$"):
        check(re.search(pattern, result.stdout, re.MULTILINE), pattern, result.stdout)


# ---- Two commands -------------------------------------------------------------------------------


def is_listening(address):
    """Without connecting: there is one connection only."""
    if "/" in address:
        with open("/proc/net/unix", encoding="ascii") as f:
            return any(line.split()[-1] == address and int(line.split()[3], 16) & 0x10000
                       for line in f)
    port = ":%04X" % int(address.rpartition(":")[2])
    with open("/proc/net/tcp", encoding="ascii") as f:
        return any(line.split()[1].endswith(port) and line.split()[3] == "0A" for line in f)


@contextlib.contextmanager
def listening(address, *args):
    process = subprocess.Popen([POSTCOPY, "--listen", address, *args], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True)
    try:
        while not is_listening(address):
            equal(process.poll(), None, "it ended early")
            os.sched_yield()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def source_and_destination_are_commands_of_their_own():
    needs_userfaultfd()
    for address in (os.path.join(scratch, "listens"), "127.0.0.1:%d" % free_port()):
        with listening(address, "--json") as destination:
            told = moved("--connect", address, "--size", "4")
            text, errors = destination.communicate()
        equal((destination.returncode, errors), (0, ""))
        heard = json.loads(text)
        for key in ("pages", "installed", "faults", "steps", "equal"):
            equal(heard[key], told[key], key)
        equal(heard["expected"], told["left"])
    check(not os.path.exists(os.path.join(scratch, "listens")))


# ---- One of them dies -----------------------------------------------------------------------------


def exactly(sock, n):
    data = b""
    while len(data) < n:
        part = sock.recv(n - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def body_of(kind, count):
    return {HELLO: HELLO_BODY.size, PAGES: count * PAGE, SWITCH: 24 + 16 * count}.get(kind, 0)


class Between:
    """
    A source and a destination, and somebody between them, who sees each message of the source's: change(kind,
    number of its kind, header, body) returns what is passed on, or None to go away.
    """

    def __init__(self, change, *args, until_asked=False):
        self.until_asked = until_asked  # nothing is passed on after the switch before a page is missed
        ours, theirs = (os.path.join(scratch, name) for name in ("ours", "theirs"))
        self.seen, self.asked = {}, threading.Event()
        with socket.socket(socket.AF_UNIX) as listener, listening(theirs) as self.destination:
            listener.bind(ours)
            listener.listen()
            self.source = subprocess.Popen([POSTCOPY, "--connect", ours, "--size", "4", *args],
                                           stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                           universal_newlines=True)
            self.to_source, _ = listener.accept()
            self.to_destination = socket.socket(socket.AF_UNIX)
            self.to_destination.connect(theirs)
            back = threading.Thread(target=self.pass_back)
            back.start()
            try:
                self.pass_on(change)
            except (EOFError, ConnectionError, BrokenPipeError):
                pass
            for sock in (self.to_source, self.to_destination):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            back.join()
            self.from_source = self.end(self.source)
            self.from_destination = self.end(self.destination)
            self.to_source.close()
            self.to_destination.close()
        os.unlink(ours)

    @staticmethod
    def end(process):
        text, errors = process.communicate(timeout=100)
        return process.returncode, text, errors

    def pass_back(self):
        with contextlib.suppress(OSError, EOFError):
            while True:
                header = exactly(self.to_destination, HEADER.size)
                kind, _, _ = HEADER.unpack(header)
                if kind == RESULT:
                    header += exactly(self.to_destination, RESULT_SIZE)
                elif kind == NEED:
                    self.asked.set()
                self.to_source.sendall(header)
        # A source that waits for a word learns that there is nobody.
        with contextlib.suppress(OSError):
            self.to_source.shutdown(socket.SHUT_RDWR)

    def pass_on(self, change):
        while True:
            header = exactly(self.to_source, HEADER.size)
            kind, count, _ = HEADER.unpack(header)
            body = exactly(self.to_source, body_of(kind, count))
            after = SWITCH in self.seen
            number = self.seen[kind] = self.seen.get(kind, 0) + 1
            if kind == PAGES and after:
                number = self.seen["after"] = self.seen.get("after", 0) + 1
            if self.until_asked and after:
                self.asked.wait()
            passed = change(kind, number, after, header, body)
            if passed is None:
                return
            self.to_destination.sendall(passed)


def cut_after_switch(n):
    """The connection breaks when n pages have come after the switch."""

    def change(kind, number, after, header, body):
        if (kind == PAGES and after and number > n) or kind == ALL:
            return None
        return header + body

    return change


def a_source_that_dies_after_the_switch_is_no_source_of_zeros():
    """Be it that the worker waits for a page at that time, or that it comes upon one later."""
    needs_userfaultfd()
    pages = 4 * MIB // PAGE
    for n in (0, 1, 100, pages - 1):
        both = Between(cut_after_switch(n), "--rounds", "0", until_asked=True)
        status, text, errors = both.from_destination
        equal((status, text), (1, ""), errors)
        gone = re.search(r"the source is gone, and (\d+) of (\d+) pages with it", errors)
        equal((int(gone.group(1)), int(gone.group(2))), (pages - n, pages))
        check("what is here is what it should be" in errors, errors)
        check("SIGBUS" in errors or "waits for one of them" in errors, errors)
        status, text, errors = both.from_source
        equal((status, text), (1, ""), errors)
        check("the destination is gone, and the process with it" in errors, errors)


def when_all_is_there_the_source_may_go():
    needs_userfaultfd()
    both = Between(cut_after_switch(4 * MIB // PAGE), "--rounds", "0")
    status, text, errors = both.from_destination
    equal((status, errors), (0, ""), text)
    check("equal" in text, text)
    equal(both.from_source[0], 1)


def a_source_that_is_killed_is_noticed():
    needs_userfaultfd()
    both = []

    def change(kind, number, after, header, body):
        if kind == PAGES and after:
            both[0].source.kill()
            return None
        return header + body

    class Kept(Between):
        def pass_on(self, change):
            both.append(self)
            super().pass_on(change)

    killed = Kept(change, "--rounds", "0")
    equal(killed.from_source[0], -9)
    equal(killed.from_destination[0], 1)
    check("the source is gone" in killed.from_destination[2], killed.from_destination)


def before_the_switch_the_process_stays():
    needs_tracking()
    for kind in (HELLO, PAGES, SWITCH):
        both = Between(lambda k, n, after, header, body, kind=kind:
                       None if k == kind else header + body)
        status, text, errors = both.from_destination
        equal((status, text), (1, ""), errors)
        check("went away before the switch: nothing runs here" in errors, errors)
        status, text, errors = both.from_source
        equal((status, text), (1, ""), errors)
        if kind == SWITCH:  # it cannot know that it did not get there
            check("It must not go on here" in errors, errors)
        else:
            check("the process stays here" in errors and "all that it should be" in errors, errors)


# ---- One of them talks nonsense ---------------------------------------------------------------------


def destination_hears(words, change, *args):
    both = Between(change, *args)
    equal((both.from_destination[0], both.from_destination[1]), (1, ""), words)
    check(words in both.from_destination[2], words, both.from_destination[2])
    equal(both.from_source[0], 1)


def instead_of(kind, make, after=False):
    """Of the first message of that kind, what it becomes."""

    def change(k, number, a, header, body):
        if (k, number, a) == (kind, 1, after):
            return make(header, body)
        return header + body

    return change


def hello_with(**changed):
    fields = ["page", "pages", "seed", "stride", "steps"]

    def make(header, body):
        values = dict(zip(fields, HELLO_BODY.unpack(body)))
        values.update(changed)
        return header + HELLO_BODY.pack(*(values[f] for f in fields))

    return instead_of(HELLO, make)


def a_greeting_that_makes_no_sense_is_refused():
    needs_userfaultfd()
    destination_hears("no greeting", instead_of(HELLO, lambda h, b: HEADER.pack(HELLO, 1, 7) + b))
    destination_hears("no greeting", instead_of(HELLO, lambda h, b: HEADER.pack(RESULT, 1, MAGIC)))
    destination_hears("version 2",
                      instead_of(HELLO, lambda h, b: HEADER.pack(HELLO, 2, MAGIC) + b))
    destination_hears("pages of %d bytes" % (4 * PAGE), hello_with(page=4 * PAGE))
    for pages in (0, 1 << 25, 1 << 60):
        destination_hears("a table of %d pages" % pages, hello_with(pages=pages))
    for stride in (0, 1 << 40):
        destination_hears("every %d." % stride, hello_with(stride=stride))


def pages_that_make_no_sense_are_refused():
    needs_tracking()
    pages = 4 * MIB // PAGE
    for count, at in ((0, 0), (65, 0), (1, pages), (1, 2**64 - 1), (64, pages - 63)):
        destination_hears("%d pages from %d on" % (count, at),
                          instead_of(PAGES, lambda h, b, c=count, a=at: HEADER.pack(PAGES, c, a)))
    destination_hears("a message of type 4 before",
                      instead_of(PAGES, lambda h, b: HEADER.pack(ALL, 0, 0)))


def a_list_that_makes_no_sense_is_refused():
    needs_userfaultfd()
    pages = 4 * MIB // PAGE
    for ranges in ([(0, 0)], [(5, 4)], [(0, pages + 1)], [(pages, pages + 1)], [(4, 6), (5, 7)],
                   [(4, 6), (0, 1)], [(0, 2**64 - 1)]):
        body = b"".join(struct.pack("=QQ", *r) for r in ranges)
        destination_hears("are to come", instead_of(
            SWITCH, lambda h, b, n=len(ranges), r=body: HEADER.pack(SWITCH, n, 0) + b[:24] + r),
                          "--rounds", "0")


def pages_after_the_switch_come_once():
    needs_userfaultfd()
    destination_hears("was not to come (again)",
                      instead_of(PAGES, lambda h, b: 2 * (h + b), after=True), "--rounds", "0")
    destination_hears("pages from", instead_of(
        PAGES, lambda h, b: HEADER.pack(PAGES, 1, 1 << 40) + b, after=True), "--rounds", "0")
    destination_hears("was not to come (again)", instead_of(
        PAGES, lambda h, b: HEADER.pack(PAGES, 2, 0) + 2 * b, after=True), "--rounds", "0")
    destination_hears("a message of type 1 after", instead_of(
        PAGES, lambda h, b: HEADER.pack(HELLO, 1, 0), after=True), "--rounds", "0")
    # One is left out, and nobody says so: it is not zeros.
    destination_hears("1 pages did not come",
                      instead_of(PAGES, lambda h, b: b"", after=True), "--rounds", "0", "--rate", "0")


def a_page_that_was_changed_on_its_way_is_noticed():
    """Both sides say so: the worker read something else, or the table is another one."""
    needs_userfaultfd()
    both = Between(instead_of(PAGES, lambda h, b: h + bytes([b[0] ^ 1]) + b[1:], after=True),
                   "--rounds", "0")
    equal((both.from_source[0], both.from_destination[0]), (1, 1))
    for _, text, errors in (both.from_source, both.from_destination):
        check("DIFFERENT" in text, text, errors)


def the_source_refuses_nonsense_too():
    needs_userfaultfd()
    path = os.path.join(scratch, "fake")
    for answer, words in ((HEADER.pack(NEED, 1, 1 << 40), "wants page"),
                          (HEADER.pack(77, 1, 0), "type 77"),
                          (HEADER.pack(COMPLETE, 1, 0), "were not sent"),
                          (HEADER.pack(NEED, 1, 0)[:7], "the destination is gone")):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            source = subprocess.Popen([POSTCOPY, "--connect", path, "--size", "1", "--rounds", "0",
                                       "--rate", "1"],
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      universal_newlines=True)
            with listener.accept()[0] as sock:
                exactly(sock, HEADER.size + HELLO_BODY.size)
                sock.sendall(HEADER.pack(READY, 1, 0))
                kind, count, _ = HEADER.unpack(exactly(sock, HEADER.size))
                equal(kind, SWITCH)
                exactly(sock, body_of(kind, count))
                sock.sendall(answer)
                sock.shutdown(socket.SHUT_WR)
                text, errors = source.communicate()
        os.unlink(path)
        equal((source.returncode, text), (1, ""), errors)
        check(words in errors, words, errors)


# ---- What is refused --------------------------------------------------------------------------------


def an_address_that_will_not_do_is_told():
    for args, words in ((["--connect", os.path.join(scratch, "nobody")], "No such file"),
                        (["--connect", "nonsense"], "nor HOST:PORT"),
                        (["--connect", "127.0.0.1:%d" % free_port()], "Connection refused"),
                        (["--listen", "192.0.2.1:9"], "loopback"),
                        (["--connect", "192.0.2.1:9"], "loopback"),
                        (["--listen", "127.0.0.1:nonsense"], "127.0.0.1:nonsense"),
                        (["--listen", scratch], "Address already in use"),
                        (["--listen", "/" + "x" * 200], "too long")):
        result = run([POSTCOPY, *args])
        equal((result.returncode, result.stdout), (1, ""), args)
        check(args[1] in result.stderr and words in result.stderr, args, result.stderr)


def wrong_arguments_are_status_2():
    for args in (["x"], ["--listen", "a:1", "--connect", "b:1"], ["--size", "0"],
                 ["--size", "65537"], ["--hot", "0"], ["--hot", "101"], ["--rounds", "33"],
                 ["--rounds", "-1"], ["--steps", "x"], ["--rate", ""], ["--seed", "+1"],
                 ["--listen"], ["--listen", ""], ["--what"]):
        result = run([POSTCOPY, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check("postcopy" in result.stderr, args, result.stderr)


def help_is_told():
    result = run([POSTCOPY, "--help"])
    equal((result.returncode, result.stderr), (0, ""))
    for word in ("--listen", "--connect", "--size", "--hot", "--seed", "--rounds", "--steps", "--rate",
                 "--no-tracking", "--json", "--quiet", "ADDRESS", "Exit status"):
        check(word in result.stdout, word)
    check(all(len(line) <= 110 for line in result.stdout.splitlines()), result.stdout)


def lost_output_is_no_success():
    needs_userfaultfd()
    with open("/dev/full", "w", encoding="ascii") as full:
        for args in ([], ["--json"]):
            equal(run([POSTCOPY, "--size", "1", *args], stdout=full).returncode, 1, args)


def without_userfaultfd_nothing_moves_and_nothing_is_lost():
    if os.path.exists("/dev/userfaultfd") and os.stat("/dev/userfaultfd").st_mode & 0o006:
        raise Skip("/dev/userfaultfd is open to everybody here")
    result = copies.as_nobody([copies.path(POSTCOPY), "--size", "1"],
                              prefix=[copies.path(WITHOUT), "EPERM"])
    if result.returncode == common.NO_FILTER_HERE:
        raise Skip("no seccomp filter can be installed: " + result.stderr.strip())
    equal((result.returncode, result.stdout), (1, ""), result)
    check("uffd-info" in result.stderr, result.stderr)
    check("the process stays here" in result.stderr, result.stderr)


TESTS = [
    a_process_moves_while_it_runs,
    most_of_it_goes_before_the_switch,
    rounds_can_be_limited,
    where_writes_cannot_be_told_all_comes_after_the_switch,
    what_is_missed_is_asked_for,
    nothing_that_is_written_is_lost,
    another_user_can_do_it,
    the_text_says_what_was_done,
    source_and_destination_are_commands_of_their_own,
    a_source_that_dies_after_the_switch_is_no_source_of_zeros,
    when_all_is_there_the_source_may_go,
    a_source_that_is_killed_is_noticed,
    before_the_switch_the_process_stays,
    a_greeting_that_makes_no_sense_is_refused,
    pages_that_make_no_sense_are_refused,
    a_list_that_makes_no_sense_is_refused,
    pages_after_the_switch_come_once,
    a_page_that_was_changed_on_its_way_is_noticed,
    the_source_refuses_nonsense_too,
    an_address_that_will_not_do_is_told,
    wrong_arguments_are_status_2,
    help_is_told,
    lost_output_is_no_success,
    without_userfaultfd_nothing_moves_and_nothing_is_lost,
]

if __name__ == "__main__":
    try:
        STATUS = common.main(TESTS)
    finally:
        copies.remove()
        shutil.rmtree(scratch)
    sys.exit(STATUS)
