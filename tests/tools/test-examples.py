# SPDX-License-Identifier: MIT
"""The examples. Arguments: uffd-info, helper, lazy-file, first, lazy-restore, epoll-server."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import common
from common import Skip, check, equal, read, run

INFO, WITHOUT, LAZY, FIRST, RESTORE, EPOLL = [os.path.abspath(a) for a in sys.argv[1:7]]
PAGE = os.sysconf("SC_PAGESIZE")
MIB = 1 << 20

copies = common.Copies(WITHOUT, LAZY, FIRST, RESTORE)
scratch = tempfile.mkdtemp(prefix="libuffd-test-")
os.chmod(scratch, 0o755)


def needs_userfaultfd():
    result = run([INFO, "--require", "user-mode"])
    if result.returncode:
        raise Skip("no userfaultfd to be had: " + " ".join(result.stderr.split()))


def make_file(name, size):
    """A file of random bytes, the same in every run."""
    path = os.path.join(scratch, name)
    data = random.Random(size).getrandbits(8 * size).to_bytes(size, "little") if size else b""
    with open(path, "wb") as f:
        f.write(data)
    return path


def fnv1a(path):
    """The checksum that lazy-file must print, by other means."""
    value = 0xCBF29CE484222325
    with open(path, "rb") as f:
        data = f.read()
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return "%016x" % value


def loads(path, *args, runner=run):
    """Run lazy-file, which must succeed; check all that it claims."""
    result = runner([LAZY, *args, path])
    equal((result.returncode, result.stderr), (0, ""), path)
    size = os.path.getsize(path)
    faults, window = re.search(r"^faults +(\d+) answered .* up to (\d+) KiB", result.stdout,
                               re.MULTILINE).groups()
    equal(int(re.search(r"^bytes +(\d+) ", result.stdout, re.MULTILINE).group(1)), size)
    sums = re.search(r"^checksum +(\w+) \(memory\), (\w+) \(file\): equal$", result.stdout,
                     re.MULTILINE)
    equal(sums.group(1), sums.group(2))
    p50, p99 = re.search(r"^latency +p50 ([\d.]+) us, p99 ([\d.]+) us", result.stdout,
                         re.MULTILINE).groups()
    # A page that another thread brought in just before its touch takes next to no time.
    check(0 <= float(p50) <= float(p99) and float(p99) > 0, p50, p99)
    check("every byte is the file's" in result.stdout, result.stdout)
    pages = -(-size // PAGE)
    windows = -(-size // (int(window) * 1024))
    check(windows <= int(faults), "fewer faults than windows:", faults, windows)
    if windows == pages:
        equal(int(faults), pages, "each page is touched once")
    return result.stdout, sums.group(1)


def one_byte():
    needs_userfaultfd()
    path = make_file("one", 1)
    equal(loads(path)[1], fnv1a(path))


def exactly_one_page():
    needs_userfaultfd()
    path = make_file("page", PAGE)
    equal(loads(path)[1], fnv1a(path))


def one_page_and_one_byte():
    needs_userfaultfd()
    path = make_file("page-and-one", PAGE + 1)
    equal(loads(path)[1], fnv1a(path))
    loads(path, "--window", str(8 * PAGE // 1024))


def eight_mib():
    needs_userfaultfd()
    path = make_file("eight", 8 * MIB)
    text, checksum = loads(path)
    equal(checksum, fnv1a(path))
    check(re.search(r"^100 %  8\.0 of 8\.0 MiB", text, re.MULTILINE), text)


def any_number_of_threads_and_any_window():
    needs_userfaultfd()
    path = make_file("three", 3 * MIB + 123)
    checksum = fnv1a(path)
    for threads in ("1", "2", "16"):
        for window in (PAGE, 3 * PAGE, 16 * PAGE, 16 * MIB):
            _, got = loads(path, "--threads", threads, "--window", str(window // 1024), "--seed",
                           threads)
            equal(got, checksum)


def quiet_prints_the_result_only():
    needs_userfaultfd()
    text, _ = loads(make_file("quiet", MIB), "--quiet")
    check(text.startswith("faults "), text)


def terminal():
    try:
        return os.openpty()
    except OSError as error:
        raise Skip(f"no pseudo-terminal is to be had: {error.strerror}") from error


def shown_on(master):
    """All that the terminal was given, when the other end is closed."""
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # EIO: the other end is closed and all is read
            break
        if not part:
            break
        shown += part
    os.close(master)
    return shown


def a_terminal_gets_a_bar():
    needs_userfaultfd()
    path = make_file("bar", MIB)
    master, slave = terminal()
    result = run([LAZY, path], stdout=slave)
    os.close(slave)
    shown = shown_on(master)
    equal(result.returncode, 0)
    check(b"\r[##############################] 100 %" in shown, shown)
    check(max(len(line) for line in re.split(rb"[\r\n]+", shown)) <= 100, shown)


def another_user_can_run_it():
    needs_userfaultfd()
    path = make_file("other", MIB)
    os.chmod(path, 0o644)

    def runner(argv):
        result = copies.as_nobody([copies.path(argv[0]), *argv[1:]])
        if result.returncode == 1 and "cannot open a userfaultfd" in result.stderr:
            raise Skip("user mode is refused here: " + result.stderr.strip())
        return result

    loads(path, runner=runner)


def refused_access_gives_the_hint():
    if os.path.exists("/dev/userfaultfd") and os.stat("/dev/userfaultfd").st_mode & 0o006:
        raise Skip("/dev/userfaultfd is open to everybody here")
    path = make_file("refused", PAGE)
    os.chmod(path, 0o644)
    for argv in ([copies.path(LAZY), path], [copies.path(FIRST)]):
        result = copies.as_nobody(argv, prefix=[copies.path(WITHOUT), "EPERM"])
        if result.returncode == common.NO_FILTER_HERE:
            raise Skip("no seccomp filter can be installed: " + result.stderr.strip())
        equal(result.returncode, 1)
        check("uffd-info" in result.stderr and "Operation not permitted" in result.stderr,
              result.stderr)


# ---- What is refused ---------------------------------------------------------------------------


def wrong_arguments_are_status_2():
    path = make_file("arguments", PAGE)
    odd = str(PAGE // 1024 + 1) if PAGE > 1024 else "0"
    for args in ([], [path, path], ["--threads", "0", path], ["--threads", "-1", path],
                 ["--threads", "x", path], ["--threads", "4x", path], ["--threads", "1025", path],
                 ["--window", "0", path], ["--window", odd, path],
                 ["--window", "99999999999999999999", path], ["--window", "999999999", path],
                 ["--seed", "", path], ["--seed", "+1", path], ["--nonsense", path],
                 ["--threads"]):
        result = run([LAZY, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check("--help" in result.stderr, args, result.stderr)


def help_is_told():
    result = run([LAZY, "--help"])
    equal((result.returncode, result.stderr), (0, ""))
    for word in ("--threads", "--window", "--seed", "--quiet", "FILE", "Exit status"):
        check(word in result.stdout, word)
    check(all(len(line) <= 100 for line in result.stdout.splitlines()), result.stdout)


def refused(path, words):
    result = run([LAZY, path])
    equal((result.returncode, result.stdout), (1, ""), path)
    check(path in result.stderr and words in result.stderr, result.stderr)


def missing_file():
    refused(os.path.join(scratch, "nonsense"), "No such file")


def empty_file():
    refused(make_file("empty", 0), "empty")


def directory():
    refused(scratch, "directory")


def fifo():
    path = os.path.join(scratch, "fifo")
    os.mkfifo(path)
    refused(path, "FIFO")


def device():
    refused("/dev/zero", "regular file")


def larger_than_memory():
    if read("/proc/sys/vm/overcommit_memory").strip() == "1":
        raise Skip("vm.overcommit_memory is 1: any amount of memory can be mapped here")
    path = make_file("huge", 0)
    try:
        os.truncate(path, 8 << 40)
    except OSError as error:
        raise Skip("this file system has no files of 8 TiB: %s" % error) from error
    try:
        result = run([LAZY, path])
    finally:
        os.unlink(path)
    equal(result.returncode, 1)
    check("cannot map" in result.stderr or "address space" in result.stderr, result.stderr)


def lost_output_is_no_success():
    needs_userfaultfd()
    path = make_file("lost", PAGE)
    with open("/dev/full", "w", encoding="ascii") as full:
        equal(run([LAZY, path], stdout=full).returncode, 1)


# ---- A file that changes meanwhile -------------------------------------------------------------


class Paused:
    """
    lazy-file, made to wait at points that can be seen from outside: its standard output is a pipe
    with room for one line, so that a line for which there is no room holds up its main thread.
    Here it has all set up, but waits with its first line and has read nothing of the file.
    """

    def __init__(self, path, *args):
        self.reader, writer = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        fcntl.fcntl(writer, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1)
        os.write(writer, b"full\n")
        self.process = subprocess.Popen([LAZY, *args, path], stdin=subprocess.DEVNULL,
                                        stdout=writer, stderr=subprocess.PIPE,
                                        universal_newlines=True)
        os.close(writer)
        self.wait_until(self.is_set_up)
        self.read_before = self.bytes_read()

    def wait_until(self, condition):
        """Spin, yielding; what never comes is ended by the time limit of the whole test."""
        while not condition():
            if self.process.poll() is not None:
                raise AssertionError("it ended early: " + self.process.stderr.read())
            os.sched_yield()

    def is_set_up(self):
        """The second eventfd is the last that it opens."""
        fds = "/proc/%d/fd" % self.process.pid
        links = []
        for fd in os.listdir(fds):
            try:
                links.append(os.readlink(os.path.join(fds, fd)))
            except FileNotFoundError:  # closed meanwhile
                continue
        return sum("eventfd" in link for link in links) == 2

    def bytes_read(self):
        """By all of its system calls; None if this kernel does not count them."""
        try:
            text = read("/proc/%d/io" % self.process.pid)
        except FileNotFoundError:
            return None
        return int(re.search(r"rchar: (\d+)", text).group(1))

    def serve(self, size):
        """Let it read a file of that size, page by page; the comparison comes later."""
        if self.read_before is None:
            self.finish()
            raise Skip("this kernel has no /proc/PID/io")
        os.read(self.reader, 4096)  # its first line takes the room, and that of progress waits
        messages = 32 * -(-size // PAGE)  # one for each page, read by the handler too
        self.wait_until(lambda: self.bytes_read() >= self.read_before + size + messages)

    def finish(self):
        """Let it run to its end: (status, all that it printed, its errors)."""
        with os.fdopen(self.reader, "rb") as f:
            text = f.read().decode()
        errors = self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(), text, errors


def no_success(ended, *words):
    status, text, errors = ended
    equal(status, 1, (text, errors))
    check("equal" not in text and "every byte" not in text, text)
    check(any(word in errors for word in words), errors)


def a_file_truncated_while_it_is_served():
    needs_userfaultfd()
    for size in (0, 1, PAGE, 4 * MIB, 8 * MIB - 1):
        for window in (PAGE, 16 * PAGE):
            path = make_file("truncated", 8 * MIB)
            lazy = Paused(path, "--window", str(window // 1024))
            os.truncate(path, size)
            no_success(lazy.finish(), "the file has become shorter")


def a_file_that_grows_while_it_is_served():
    needs_userfaultfd()
    path = make_file("growing", MIB + 1)
    lazy = Paused(path)
    with open(path, "ab") as f:
        f.write(b"more")
    no_success(lazy.finish(), "has %d now" % (MIB + 5))


def a_file_rewritten_after_it_was_served():
    needs_userfaultfd()
    for at in (0, MIB // 2, MIB - 1):
        path = make_file("rewritten", MIB)
        lazy = Paused(path)
        lazy.serve(MIB)
        with open(path, "r+b") as f:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1]))
        no_success(lazy.finish(), "the memory is not what the file is")


def interrupting_ends_it_cleanly():
    needs_userfaultfd()
    path = make_file("interrupted", 8 * MIB)
    for number in (signal.SIGINT, signal.SIGTERM):
        lazy = Paused(path)
        os.kill(lazy.process.pid, number)
        status, text, errors = lazy.finish()
        equal(status, 130, errors)
        check("interrupted" in errors and "equal" not in text, text, errors)


# ---- first -------------------------------------------------------------------------------------


def first_reads_what_its_handler_made():
    needs_userfaultfd()
    result = run([FIRST])
    equal((result.returncode, result.stderr), (0, ""))
    equal(result.stdout, "".join("page %d was made for fault %d\n" % (3 - i, i + 1)
                                 for i in range(4)))


# ---- The server's -------------------------------------------------------------------------------


def restore(path, *args):
    result = run([RESTORE, "--json", *args, path])
    equal(result.returncode, 0, result.stderr)
    return json.loads(result.stdout)


def lazy_restore_brings_every_byte_in_four_ways():
    needs_userfaultfd()
    size = 8 * MIB + 1
    path = make_file("restored", size)
    for engine in ("auto", "poll"):
        told = restore(path, "--engine", engine, "--touch", "40", "--window", "16")
        check(engine in ("auto", told["engine"]), told)
        equal(told["bytes"], size)
        equal([way["way"] for way in told["ways"]], ["mmap", "faults", "fill", "replay"])
        check(all(way["equal"] for way in told["ways"]), told)
        ways = {way["way"]: way for way in told["ways"]}
        check(ways["faults"]["faults"] > 0, told)
        # Whole pages of all of the file, and of what was touched the first time.
        page = os.sysconf("SC_PAGESIZE")
        equal(ways["fill"]["supplied"], (size + page - 1) // page * page)
        equal(ways["replay"]["supplied"], ways["faults"]["supplied"])


def lazy_restore_prints_a_table():
    needs_userfaultfd()
    result = run([RESTORE, "--threads", "1", "--touch", "100", make_file("table", 3 * MIB)])
    equal((result.returncode, result.stderr), (0, ""))
    equal(re.findall(r"^(mmap|faults|fill|replay) .* equal$", result.stdout, re.MULTILINE),
          ["mmap", "faults", "fill", "replay"])


def lazy_restore_gives_a_terminal_a_bar():
    """Of errors: the table may go elsewhere. It fits into 80 columns, so that no line is broken."""
    needs_userfaultfd()
    path = make_file("bar-of-restore", 2 * MIB + 1)
    for quiet in ([], ["--quiet"]):
        master, slave = terminal()
        result = run([RESTORE, *quiet, path], stderr=slave)
        os.close(slave)
        shown = shown_on(master)
        equal(result.returncode, 0, shown)
        if quiet:
            equal(shown, b"")
            continue
        for way in (b"mmap", b"faults", b"fill", b"replay"):
            for what in (b"touched", b"compared"):
                check(re.search(rb"\r%s +\[#{20}\] 100%% %s" % (way, what), shown), way, what, shown)
        check(max(len(line) for line in re.split(rb"[\r\n]+", shown)) < 80, shown)
        check(shown.endswith(b"\r\033[K"), shown)  # and makes room for the table


def lazy_restore_says_what_is_not_cold():
    """A file in memory is all in the page cache, whatever one does."""
    needs_userfaultfd()
    fd = os.memfd_create("not-cold")
    os.write(fd, random.Random(1).getrandbits(8 * MIB).to_bytes(MIB, "little"))
    path = "/proc/self/fd/%d" % fd
    told = json.loads(run([RESTORE, "--json", path], pass_fds=[fd]).stdout)
    equal([way["cached"] for way in told["ways"]], 4 * [MIB])
    text = run([RESTORE, path], pass_fds=[fd]).stdout
    os.close(fd)
    equal(len(re.findall(r"^\w+ +100% ", text, re.MULTILINE)), 4, text)
    check("This is not cold: up to 1.0 MiB" in text, text)


def lazy_restore_begins_cold_on_a_disk():
    needs_userfaultfd()
    path = make_file("cold", 3 * MIB + 1)
    kind = run(["stat", "-f", "-c", "%T", path]).stdout.strip()
    if kind not in ("ext2/ext3", "xfs", "btrfs"):
        raise Skip("this file system may keep its files in memory: " + kind)
    equal([way["cached"] for way in restore(path)["ways"]], 4 * [0])
    text = run([RESTORE, path]).stdout
    check("cold:" not in text and "not known" not in text, text)


def lazy_restore_does_not_know_of_the_file_of_another():
    needs_userfaultfd()
    path = make_file("of-another", MIB)
    os.chmod(path, 0o644)
    for args in (["--json"], []):
        result = copies.as_nobody([copies.path(RESTORE), *args, path])
        if result.returncode == 1 and "userfaultfd" in result.stderr:
            raise Skip("user mode is refused here: " + result.stderr.strip())
        equal(result.returncode, 0, result.stderr)
        if args:
            equal([way["cached"] for way in json.loads(result.stdout)["ways"]], 4 * [None])
        else:
            check("Whether this is cold is not known" in result.stdout, result.stdout)


def lazy_restore_tells_no_latency_that_was_not_measured():
    """The kernel's own mapping has no faults that a server could time."""
    needs_userfaultfd()
    path = make_file("latency", MIB)
    ways = restore(path)["ways"]
    equal((ways[0]["p50_below_us"], ways[0]["p99_below_us"]), (None, None))
    check(all(way[p] is None or way[p] > 0 for way in ways for p in ("p50_below_us", "p99_below_us")),
          ways)
    text = run([RESTORE, path]).stdout
    check(" 0 us" not in text, text)


def lazy_restore_refuses_what_it_cannot_do():
    for args in (["--threads", "0", "x"], ["--touch", "101", "x"], ["--window", "3", "x"],
                 ["--engine", "steam", "x"], ["--seed", "-1", "x"], [], ["x", "y"], ["--what", "x"]):
        result = run([RESTORE, *args])
        equal(result.returncode, 2, args)
        check("lazy-restore" in result.stderr and not result.stdout, result)
    for path in (os.path.join(scratch, "nothing-there"), scratch, make_file("nothing-in-it", 0)):
        result = run([RESTORE, path])
        equal((result.returncode, result.stdout), (1, ""), path)
        check(path in result.stderr, result.stderr)
    check("--engine" in run([RESTORE, "--help"]).stdout)


# ---- The demo: what it refuses before it installs, builds or packs anything -----------------------


DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts/demo")


def demo_refuses_what_it_cannot_do():
    for args in (["--size"], ["--size", "0"], ["--size", "x"], ["--size", "-1"], ["--size", "1.5"],
                 ["--size", "99999999"], ["--size", "5", "file"], ["a", "b"], ["--what"]):
        result = run([DEMO, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check("--size" in result.stderr, result.stderr)
    check("--size MIB" in run([DEMO, "--help"]).stdout)
    result = run([DEMO, os.path.join(scratch, "nothing-there")])
    equal((result.returncode, result.stdout), (1, ""))


# In front of the real ones: a disk, or a memory, that has 100 MiB left. awk is asked twice, for the disk with
# one argument, for the memory with the name of a file too.
SHORT = {
    "df": "printf 'header\\ndisk 0 0 102400 99% /\\n'",
    "awk": "[ $# = 2 ] && echo 100 || { cat >/dev/null; echo 99999; }",
}


def demo_wants_room_for_its_file():
    for name, text in SHORT.items():
        tools = os.path.join(scratch, "short-of-" + name)
        os.mkdir(tools)
        with open(os.path.join(tools, name), "w", encoding="ascii") as f:
            f.write("#!/bin/sh\n%s\n" % text)
        os.chmod(os.path.join(tools, name), 0o755)
        path = tools + ":" + os.environ["PATH"]
        result = run([DEMO, "--no-install"], env={**os.environ, "PATH": path})
        equal((result.returncode, result.stdout), (1, ""), result.stderr)
        check("100 MiB" in result.stderr and "--size" in result.stderr, result.stderr)


def epoll_server_serves_in_a_loop_of_its_own():
    needs_userfaultfd()
    result = run([EPOLL])
    equal(result.returncode, 0, result.stderr)
    check(re.fullmatch(r"\d+ faults, 0 wrong pages\n", result.stdout), result.stdout)


TESTS = [
    lazy_restore_brings_every_byte_in_four_ways,
    lazy_restore_prints_a_table,
    lazy_restore_gives_a_terminal_a_bar,
    lazy_restore_says_what_is_not_cold,
    lazy_restore_begins_cold_on_a_disk,
    lazy_restore_does_not_know_of_the_file_of_another,
    lazy_restore_tells_no_latency_that_was_not_measured,
    lazy_restore_refuses_what_it_cannot_do,
    demo_refuses_what_it_cannot_do,
    demo_wants_room_for_its_file,
    epoll_server_serves_in_a_loop_of_its_own,
    one_byte,
    exactly_one_page,
    one_page_and_one_byte,
    eight_mib,
    any_number_of_threads_and_any_window,
    quiet_prints_the_result_only,
    a_terminal_gets_a_bar,
    another_user_can_run_it,
    refused_access_gives_the_hint,
    wrong_arguments_are_status_2,
    help_is_told,
    missing_file,
    empty_file,
    directory,
    fifo,
    device,
    larger_than_memory,
    lost_output_is_no_success,
    a_file_truncated_while_it_is_served,
    a_file_that_grows_while_it_is_served,
    a_file_rewritten_after_it_was_served,
    interrupting_ends_it_cleanly,
    first_reads_what_its_handler_made,
]

if __name__ == "__main__":
    try:
        STATUS = common.main(TESTS)
    finally:
        copies.remove()
        shutil.rmtree(scratch)
    sys.exit(STATUS)
