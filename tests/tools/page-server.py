#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A page server for the tests of microvm: one VM, the Firecracker handshake, and a death to order.

usage: page-server.py SOCKET MEMORY [--after N die|pass-on|poison|close]

It prints what it was told, as a line of JSON, when the handshake is over. After N faults it dies without a
word, dies while another process of it has the descriptor and serves on, poisons every page that is asked
for, or closes the connection and serves on.
"""

import array
import ctypes
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import sys

WAKE, COPY, POISON = 0x8010AA02, 0xC028AA03, 0xC020AA08
PAGEFAULT, REMOVE = 0x12, 0x15
EEXIST, EAGAIN, ENOENT = 17, 11, 2


def handshake(connection):
    """The message, and the descriptors that came with it: until the JSON is complete."""
    text, fds = b"", array.array("i")
    while True:
        part, control, flags, _ = connection.recvmsg(65536, socket.CMSG_SPACE(8 * 4),
                                                     socket.MSG_CMSG_CLOEXEC)
        if not part or flags & socket.MSG_CTRUNC:
            sys.exit("page-server: no handshake")
        text += part
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[:len(data) // 4 * 4])
        try:
            return json.loads(text), list(fds)
        except json.JSONDecodeError:
            continue


class Server:
    """One userfaultfd, and the regions that it came with."""

    def __init__(self, fd, regions, memory):
        self.fd, self.regions, self.memory = fd, regions, memory
        self.removed, self.waiting, self.faults, self.poison = set(), [], 0, False
        self.buffer = mmap.mmap(-1, mmap.PAGESIZE)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))

    def bytes_of(self, address):
        if address in self.removed:
            return bytes(mmap.PAGESIZE)
        for r in self.regions:
            base = r["base_host_virt_addr"]
            if base <= address < base + r["size"]:
                return os.pread(self.memory, mmap.PAGESIZE, address - base + r["offset"])
        sys.exit("page-server: a fault at an unknown address")

    def answer(self, address):
        """Return whether it was; if not, the layout is changing."""
        if self.poison:
            call = bytearray(struct.pack("=QQQq", address, mmap.PAGESIZE, 0, 0))
            request = POISON
        else:
            self.buffer[:] = self.bytes_of(address)
            call = bytearray(struct.pack("=QQQQq", address, self.at, mmap.PAGESIZE, 0, 0))
            request = COPY
        try:
            fcntl.ioctl(self.fd, request, call)
        except OSError as error:
            if error.errno == EAGAIN:
                return False
            if error.errno not in (EEXIST, ENOENT):
                raise
            fcntl.ioctl(self.fd, WAKE, struct.pack("=QQ", address, mmap.PAGESIZE))
        return True

    def read(self):
        """All that there is to read: events are applied at once, faults in the end."""
        try:
            while True:
                messages = os.read(self.fd, 32 * 64)
                for at in range(0, len(messages), 32):
                    event, *_ = struct.unpack_from("=B", messages, at)
                    words = struct.unpack_from("=QQQ", messages, at + 8)
                    if event == PAGEFAULT:
                        self.waiting.append(words[1] & ~(mmap.PAGESIZE - 1))
                        self.faults += 1
                    elif event == REMOVE:
                        self.removed.update(range(words[0], words[1], mmap.PAGESIZE))
        except BlockingIOError:
            pass

    def take_over(self):
        """What the one before has read and not answered is asked again."""
        for r in self.regions:
            fcntl.ioctl(self.fd, WAKE, struct.pack("=QQ", r["base_host_virt_addr"], r["size"]))

    def turn(self):
        self.read()
        self.waiting = [address for address in self.waiting if not self.answer(address)]


def wait_for_death_of_parent():
    """Two processes come back: the parent at once, with False; the child when the parent is no more."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(reader)
        return False  # the end that writes stays open as long as this one lives
    os.close(writer)
    os.read(reader, 1)
    return True


def main(path, memory, after=None, deed=None):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    connection, _ = listener.accept()
    regions, fds = handshake(connection)
    print(json.dumps({"regions": regions, "fds": len(fds),
                      "kind": os.readlink("/proc/self/fd/%d" % fds[0])}), flush=True)
    server = Server(fds[0], regions, os.open(memory, os.O_RDONLY))
    if deed == "pass-on":
        if wait_for_death_of_parent():
            deed = None
            server.take_over()
        else:
            deed = "die"
    poll = select.poll()
    poll.register(server.fd, select.POLLIN)
    if not deed:
        poll.register(connection, select.POLLIN)
    while True:
        ready = dict(poll.poll(1 if server.waiting else None))
        if connection and connection.fileno() in ready:
            return  # the VM has ended
        if deed and server.faults >= after:
            if deed == "die":
                os._exit(0)
            server.poison = deed == "poison"
            if deed == "close":
                connection.close()
                deed = None
        server.turn()


if __name__ == "__main__":
    if len(sys.argv) == 6:
        main(sys.argv[1], sys.argv[2], int(sys.argv[4]), sys.argv[5])
    else:
        main(sys.argv[1], sys.argv[2])
