# SPDX-License-Identifier: MIT
"""A hypervisor whose guest's memory comes when it is touched. Arguments: uffd-info, helper, microvm,
uffd-serve."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import common
from common import Skip, check, equal, run

INFO, WITHOUT, MICROVM, SERVE = [os.path.abspath(a) for a in sys.argv[1:5]]
HERE = os.path.dirname(os.path.abspath(__file__))
SERVER = os.path.join(HERE, "page-server.py")
README = os.path.join(HERE, "../../README.md")
PAGE = 4096
MIB = 1 << 20
NO_KVM = 77

copies = common.Copies(WITHOUT, MICROVM)
scratch = tempfile.mkdtemp(prefix="libuffd-test-")
os.chmod(scratch, 0o755)
said = []


def needs_machine():
    """KVM, and a userfaultfd that sees the kernel's faults."""
    result = run([INFO, "--require", "open"])
    if result.returncode:
        raise Skip("no userfaultfd for faults of the kernel: " + " ".join(result.stderr.split()))
    path = os.path.join(scratch, "try")
    result = run([MICROVM, "--make", path, "--size", "1"])
    if result.returncode == NO_KVM:
        if not said:
            said.append(result.stderr)
            print("# NO KVM: the hypervisor was not tested at all. The matrix has a guest that has it: 6.18-kvm.")
            for line in result.stderr.splitlines():
                print("#", line)
        raise Skip("needs kvm: " + " ".join(result.stderr.split()))
    equal((result.returncode, result.stderr), (0, ""))


def made(name, *args):
    path = os.path.join(scratch, name)
    result = run([MICROVM, "--make", path, *args])
    equal((result.returncode, result.stderr), (0, ""), args)
    check(path in result.stdout, result.stdout)
    return path


def restored(path, *args):
    result = run([MICROVM, "--json", "--restore", path, *args])
    equal((result.returncode, result.stderr), (0, ""), args)
    told = json.loads(result.stdout)
    check(told["equal"] and all(p["right"] for p in told["passes"]), told)
    equal(told["bytes"], os.path.getsize(path))
    return told


# ---- In one process -----------------------------------------------------------------------------


def a_snapshot_has_holes():
    needs_machine()
    path = made("holes", "--size", "4")
    equal(os.path.getsize(path), 4 * MIB)
    # The guest did not use every fourth 64 KiB; a file system without holes has them as zeros.
    with open(path, "rb") as f:
        data = f.read()
    empty = sum(not any(data[at:at + PAGE]) for at in range(0, len(data), PAGE))
    check(4 * MIB // PAGE // 5 < empty < 4 * MIB // PAGE // 3, empty)
    kind = run(["stat", "-f", "-c", "%T", path]).stdout.strip()
    if kind in ("ext2/ext3", "xfs", "btrfs", "tmpfs"):
        check(os.stat(path).st_blocks * 512 < 4 * MIB * 4 // 5, kind, os.stat(path).st_blocks)


def a_guest_goes_on_where_it_was():
    needs_machine()
    path = made("basic", "--size", "2", "--cpus", "2", "--seed", "5")
    for engine in ("auto", "poll"):
        told = restored(path, "--passes", "5", "--engine", engine)
        check(engine in ("auto", told["server"]), told)
        equal(told["cpus"], 2)
        equal([p["changed"] for p in told["passes"]], [False, True, False, True, False])
        equal({p["pages"] for p in told["passes"]}, {told["pages"]})
        # Each page once, or twice where both vCPUs, or the kernel and one of them, wait for it.
        check(told["faults"] >= told["pages"], told)
        equal(told["supplied"], told["bytes"])
        equal(told["came"], told["bytes"])


def only_what_is_touched_comes():
    needs_machine()
    path = made("lazy", "--size", "4")
    told = restored(path, "--passes", "1", "--touch", "10")
    touched = told["passes"][0]["pages"]
    equal(touched, told["pages"] // 10)
    # And the page of its code, and its table of sums.
    check(touched < told["came"] // PAGE <= touched + 2, told)


def a_window_brings_neighbours_and_a_fill_all():
    needs_machine()
    path = made("ahead", "--size", "4")
    one = restored(path, "--passes", "1")
    window = restored(path, "--passes", "1", "--window", "64")
    check(window["faults"] < one["faults"] // 4, one, window)
    equal(restored(path, "--passes", "2", "--touch", "1", "--fill")["equal"], True)


def what_the_balloon_dropped_is_zeros():
    needs_machine()
    path = made("balloon", "--size", "2", "--cpus", "2")
    for percent in ("1", "50", "100"):
        restored(path, "--balloon", percent, "--passes", "4")


def any_number_of_words_and_cpus():
    needs_machine()
    for cpus in ("1", "3", "16"):
        path = made("cpus", "--size", "1", "--cpus", cpus)
        for words in ("1", "16", "1024"):
            restored(path, "--words", words, "--touch", "3", "--passes", "2")


def the_text_says_what_was_found():
    needs_machine()
    path = made("text", "--size", "1")
    result = run([MICROVM, "--restore", path, "--passes", "2"])
    equal((result.returncode, result.stderr), (0, ""))
    for pattern in (r"^guest +1 MiB, 1 vCPU, ready after [\d.]+ ms$",
                    r"^pass 1 +254 of 254 pages read in .*: the guest found what it should$",
                    r"^pass 2 +254 of 254 pages changed in .*: the guest found what it should$",
                    r"^served +in this process, by (uring|poll): \d+ faults, p50 below",
                    r"^came +1\.0 MiB until the passes were over$",
                    r"^memory +every byte is what it should be$"):
        check(re.search(pattern, result.stdout, re.MULTILINE), pattern, result.stdout)


def a_changed_snapshot_is_noticed():
    """One byte, where the guest looks, and where only the comparison in the end does."""
    needs_machine()
    path = made("changed", "--size", "1")
    for at, words in ((PAGE, "in page 0 the guest found something else"), (PAGE + 4, "DIFFERENT")):
        with open(path, "r+b") as f:
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 1]))
        result = run([MICROVM, "--restore", path])
        equal(result.returncode, 1)
        check(words in result.stdout + result.stderr, result)
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(bytes([byte]))
    restored(path)


def a_snapshot_that_gets_shorter_stops_the_guest():
    """It must not go on with zeros."""
    needs_machine()
    path = made("shorter", "--size", "32")
    vm = subprocess.Popen([MICROVM, "--restore", path, "--touch", "1", "--passes", "10000"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    fds = "/proc/%d/fd" % vm.pid

    def has_a_cpu():
        """It makes its vCPUs when its memory is served."""
        for fd in os.listdir(fds):
            with contextlib.suppress(FileNotFoundError):
                if "kvm-vcpu" in os.readlink(os.path.join(fds, fd)):
                    return True
        return False

    while not has_a_cpu():
        equal(vm.poll(), None)
        os.sched_yield()
    os.kill(vm.pid, signal.SIGSTOP)
    os.truncate(path, 0)
    os.kill(vm.pid, signal.SIGCONT)
    text, errors = vm.communicate()
    equal((vm.returncode, text), (1, ""), errors)
    check("lost" in errors or "cannot be had" in errors, errors)


# ---- In two processes ---------------------------------------------------------------------------


@contextlib.contextmanager
def page_server(memory, *args):
    """One that listens; its process, and the name of its socket."""
    path = os.path.join(scratch, "socket")
    server = subprocess.Popen([sys.executable, SERVER, path, memory, *args],
                              stdout=subprocess.PIPE, universal_newlines=True)
    try:
        while not is_listening(path):
            equal(server.poll(), None, "the page server ended early")
            os.sched_yield()
        yield server, path
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        os.unlink(path)


def is_listening(path):
    """Without connecting: the server has one connection only."""
    with open("/proc/net/unix", encoding="ascii") as f:
        for line in f:
            fields = line.split()
            if fields[-1] == path:
                return int(fields[3], 16) & 0x10000 != 0  # it accepts connections
    return False


def another_process_serves_it():
    needs_machine()
    path = made("handed", "--size", "2", "--cpus", "2")
    with page_server(path) as (server, socket):
        told = restored(path, "--socket", socket, "--passes", "3", "--balloon", "20")
        equal(told["server"], socket)
        check("faults" not in told, told)
        heard = json.loads(server.stdout.readline())
        equal(server.wait(), 0)
    equal((heard["fds"], heard["kind"]), (1, "anon_inode:[userfaultfd]"))
    region, = heard["regions"]
    equal(set(region),
          {"base_host_virt_addr", "size", "offset", "page_size", "page_size_kib"})
    equal((region["size"], region["offset"]), (2 * MIB, 0))
    equal((region["page_size"], region["page_size_kib"]), (PAGE, PAGE))  # both are bytes
    equal(region["base_host_virt_addr"] % PAGE, 0)


def whoever_serves_may_close_the_connection():
    needs_machine()
    path = made("closed", "--size", "1")
    with page_server(path, "--after", "10", "close") as (_, socket):
        restored(path, "--socket", socket)


def a_guest_whose_server_died_is_stopped():
    """It would wait for ever; and it must not see zeros."""
    needs_machine()
    path = made("died", "--size", "2", "--cpus", "2")
    for after in ("0", "1", "100"):
        with page_server(path, "--after", after, "die") as (server, socket):
            result = run([MICROVM, "--restore", path, "--socket", socket])
            equal((result.returncode, result.stdout), (1, ""), result)
            check("process %d" % server.pid in result.stderr and "has ended" in result.stderr,
                  result.stderr)


def a_guest_can_wait_for_another_server():
    """Somebody else has the descriptor: nothing was lost when the first one died."""
    needs_machine()
    path = made("other", "--size", "2", "--cpus", "2")
    for after in ("0", "100"):
        with page_server(path, "--after", after, "pass-on") as (server, socket):
            restored(path, "--socket", socket, "--stay", "--passes", "2")
            equal(server.wait(), 0)
            server.stdout.read()  # until the second one has ended, too


def a_guest_that_lost_a_page_is_stopped():
    needs_machine()
    if run([INFO, "--require", "poison"]).returncode:
        raise Skip("this kernel cannot poison a page")
    path = made("poisoned", "--size", "2")
    with page_server(path, "--after", "20", "poison") as (_, socket):
        result = run([MICROVM, "--restore", path, "--socket", socket])
        equal((result.returncode, result.stdout), (1, ""), result)
        check("lost" in result.stderr, result.stderr)


def without_a_server_there_is_a_hint():
    needs_machine()
    path = made("nobody-there", "--size", "1")
    for socket in (os.path.join(scratch, "no-socket"), path, "x" * 200):
        result = run([MICROVM, "--restore", path, "--socket", socket])
        equal((result.returncode, result.stdout), (1, ""), socket)
        check(socket in result.stderr, result.stderr)


# ---- With uffd-serve ------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(memory, *args):
    """uffd-serve, when it accepts machines; what it does comes as lines of JSON."""
    path = os.path.join(scratch, "serve")
    server = subprocess.Popen([SERVE, "--json", "--socket", path, "--memory", memory, *args],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)
    try:
        wait_for(server, "ready")
        yield server, path
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        server.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def wait_for(server, event):
    """Read on until it tells of that."""
    for line in server.stdout:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError("uffd-serve ended, without %s: %s" % (event, server.stderr.read()))


def start(path, *args):
    return subprocess.Popen([MICROVM, "--restore", path, *args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def uffd_serve_serves_it():
    needs_machine()
    path = made("served", "--size", "4", "--cpus", "2")
    for args in ([], ["--window", "64K"], ["--fill", "max"], ["--engine", "poll", "--threads", "2"]):
        with serving(path, *args) as (server, socket):
            for balloon in ("0", "40"):
                restored(path, "--socket", socket, "--passes", "4", "--balloon", balloon)
                wait_for(server, "gone")
            server.terminate()
            wait_for(server, "ended")
            equal(server.wait(), 0, args)


def uffd_serve_serves_several_at_once():
    needs_machine()
    path = made("several", "--size", "4", "--cpus", "2")
    with serving(path) as (_, socket):
        machines = [start(path, "--socket", socket, "--seed", str(seed), "--balloon", "20")
                    for seed in range(4)]
        for machine in machines:
            text, errors = machine.communicate(timeout=100)
            equal((machine.returncode, errors), (0, ""))
            check("every byte is what it should be" in text, text)


def a_machine_outlives_a_server_that_ends_in_order():
    """It has all of its memory by then, and goes on alone."""
    needs_machine()
    path = made("alone", "--size", "16")
    for passes in ("500", "10000"):
        with serving(path) as (server, socket):
            machine = start(path, "--socket", socket, "--touch", "1", "--passes", passes)
            wait_for(server, "served")
            os.kill(machine.pid, signal.SIGSTOP)
            server.terminate()
            wait_for(server, "ended")
            equal(server.wait(), 0)
            early = machine.poll() is not None
            machine.send_signal(signal.SIGCONT)
            text, errors = machine.communicate(timeout=100)
            equal((machine.returncode, errors), (0, ""))
            check("every byte is what it should be" in text, text)
        if not early:
            return
    raise AssertionError("each time it was done before its server had ended")


def a_machine_does_not_outlive_a_server_that_is_killed():
    needs_machine()
    path = made("not-alone", "--size", "64")
    with serving(path) as (server, socket):
        machine = start(path, "--socket", socket, "--touch", "1", "--passes", "10000")
        wait_for(server, "served")
        server.kill()
        text, errors = machine.communicate(timeout=100)
        equal((machine.returncode, text), (1, ""), errors)
        check("process %d" % server.pid in errors and "has ended" in errors, errors)


def what_uffd_serve_cannot_have_never_reads_as_zeros():
    """A file that got shorter: the machine is told, or killed, as the option says."""
    needs_machine()
    if run([INFO, "--require", "poison"]).returncode:
        raise Skip("this kernel cannot poison a page")
    for policy, wanted in (("poison", 1), ("kill", -9)):
        path = made("short-" + policy, "--size", "64")
        with serving(path, "--on-error", policy, "--retries", "0") as (server, socket):
            machine = start(path, "--socket", socket, "--touch", "1", "--passes", "10000")
            wait_for(server, "served")
            os.truncate(path, 0)
            text, errors = machine.communicate(timeout=100)
            equal((machine.returncode, text), (wanted, ""), errors)
            check(policy == "kill" or "lost" in errors, errors)


def the_session_of_the_readme_works_as_it_is_written():
    needs_machine()
    section = re.search(r"^## A virtual machine, .*?(?=^## )", common.read(README),
                        re.MULTILINE | re.DOTALL).group(0)
    first, second, text = re.findall(r"^```\w+\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    place = os.path.join(scratch, "session")
    os.mkdir(place)
    os.symlink(os.path.dirname(os.path.dirname(MICROVM)), os.path.join(place, "build"))
    # The shell becomes its last command, so that this is what gets the signal.
    commands = first.strip().splitlines()
    script = "\n".join(commands[:-1] + ["exec " + commands[-1]])
    server = subprocess.Popen(["sh", "-ec", script], cwd=place, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        while not is_listening("vm.sock"):
            equal(server.poll(), None)
            os.sched_yield()
        result = run(["sh", "-ec", second], cwd=place)
    finally:
        server.send_signal(signal.SIGINT)
        equal(server.wait(timeout=100), 0)
    equal((result.returncode, result.stderr), (0, ""))

    def shape(told):
        return re.sub(r"\d+\.\d+", "N", told)

    equal(shape(result.stdout), shape(text))


# ---- What is refused ------------------------------------------------------------------------------


def a_userfaultfd_for_user_mode_is_refused_with_the_cure():
    needs_machine()
    path = made("cure", "--size", "1")
    for name in (path, path + ".state"):
        os.chmod(name, 0o644)
    if os.getuid() != 0:
        raise Skip("needs root, to become a user who may use KVM and no userfaultfd")
    if os.path.exists("/dev/userfaultfd") and os.stat("/dev/userfaultfd").st_mode & 0o006:
        raise Skip("/dev/userfaultfd is open to everybody here")
    kvm = os.stat("/dev/kvm").st_mode & 0o7777
    os.chmod("/dev/kvm", 0o666)
    try:
        result = copies.as_nobody([copies.path(MICROVM), "--restore", path],
                                  prefix=[copies.path(WITHOUT), "EPERM"])
    finally:
        os.chmod("/dev/kvm", kvm)
    if result.returncode == common.NO_FILTER_HERE:
        raise Skip("no seccomp filter can be installed: " + result.stderr.strip())
    equal((result.returncode, result.stdout), (1, ""), result)
    for words in ("user mode only will not do", "KVM_RUN", "\n  - ", "uffd-info"):
        check(words in result.stderr, words, result.stderr)


def no_kvm_is_status_77():
    """Said with what it takes; nothing was made."""
    if os.getuid() != 0:
        raise Skip("needs root, to become a user without KVM")
    if os.path.exists("/dev/kvm") and os.stat("/dev/kvm").st_mode & 0o006:
        raise Skip("/dev/kvm is open to everybody here")
    path = os.path.join(scratch, "no-kvm")
    result = copies.as_nobody([copies.path(MICROVM), "--make", path, "--size", "1"])
    equal((result.returncode, result.stdout), (NO_KVM, ""))
    check("/dev/kvm" in result.stderr and "this takes KVM" in result.stderr, result.stderr)
    check(not os.path.exists(path))


def a_damaged_snapshot_is_refused():
    needs_machine()
    path = made("damaged", "--size", "1")
    state = path + ".state"
    with open(state, "rb") as f:
        good = f.read()

    def refused(words):
        result = run([MICROVM, "--restore", path])
        equal((result.returncode, result.stdout), (1, ""), words)
        check(path in result.stderr and words in result.stderr, words, result.stderr)

    for data, words in ((b"", "cut off"), (good[:-1], "cut off"), (b"x" + good[1:], "not the state"),
                        (good[:8] + b"\2" + good[9:], "version 2"),
                        (good[:12] + b"\0" + good[13:], "damaged"),
                        (good[:12] + b"\x11" + good[13:], "damaged"),
                        (good[:16] + b"\1" + good[17:], "damaged"),
                        (good[:16] + bytes(8) + good[24:], "damaged"),
                        (good[:16] + b"\xff" * 8 + good[24:], "damaged")):
        with open(state, "wb") as f:
            f.write(data)
        refused(words)
    with open(state, "wb") as f:
        f.write(good)
    restored(path)
    os.truncate(path, MIB - 1)
    refused("not the memory of a guest of 1 MiB")
    os.unlink(path)
    refused("No such file")
    os.mkdir(path)
    refused("not the memory")
    os.unlink(state)
    refused("--make")


def wrong_arguments_are_status_2():
    for args in ([], ["--make", "a", "--restore", "b"], ["--make", "a", "--socket", "b"], ["x"],
                 ["--make", ""], ["--restore", "a", "b"], ["--make", "a", "--size", "0"],
                 ["--make", "a", "--size", "3073"], ["--make", "a", "--cpus", "17"],
                 ["--restore", "a", "--passes", "0"], ["--restore", "a", "--touch", "101"],
                 ["--restore", "a", "--words", "3"], ["--restore", "a", "--words", "2048"],
                 ["--restore", "a", "--window", "3"], ["--restore", "a", "--window", "2"],
                 ["--restore", "a", "--engine", "steam"], ["--restore", "a", "--balloon", "-1"],
                 ["--restore", "a", "--socket", "b", "--fill"], ["--restore"], ["--what"],
                 ["--restore", "a", "--socket", "b", "--window", "64"]):
        result = run([MICROVM, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check("microvm" in result.stderr, args, result.stderr)


def help_is_told():
    result = run([MICROVM, "--help"])
    equal((result.returncode, result.stderr), (0, ""))
    for word in ("--make", "--restore", "--socket", "--size", "--cpus", "--seed", "--stay", "--passes",
                 "--touch", "--words", "--balloon", "--window", "--fill", "--engine", "--json",
                 "--quiet", "uffd-serve", "Exit status"):
        check(word in result.stdout, word)
    check(all(len(line) <= 110 for line in result.stdout.splitlines()), result.stdout)


def lost_output_is_no_success():
    needs_machine()
    path = made("lost", "--size", "1")
    with open("/dev/full", "w", encoding="ascii") as full:
        for args in (["--restore", path], ["--json", "--restore", path], ["--make", path]):
            equal(run([MICROVM, *args], stdout=full).returncode, 1, args)
    equal(run([MICROVM, "--make", "/dev/full", "--size", "1"]).returncode, 1)


TESTS = [
    a_snapshot_has_holes,
    a_guest_goes_on_where_it_was,
    only_what_is_touched_comes,
    a_window_brings_neighbours_and_a_fill_all,
    what_the_balloon_dropped_is_zeros,
    any_number_of_words_and_cpus,
    the_text_says_what_was_found,
    a_changed_snapshot_is_noticed,
    a_snapshot_that_gets_shorter_stops_the_guest,
    another_process_serves_it,
    whoever_serves_may_close_the_connection,
    a_guest_whose_server_died_is_stopped,
    a_guest_can_wait_for_another_server,
    a_guest_that_lost_a_page_is_stopped,
    without_a_server_there_is_a_hint,
    uffd_serve_serves_it,
    uffd_serve_serves_several_at_once,
    a_machine_outlives_a_server_that_ends_in_order,
    a_machine_does_not_outlive_a_server_that_is_killed,
    what_uffd_serve_cannot_have_never_reads_as_zeros,
    the_session_of_the_readme_works_as_it_is_written,
    a_userfaultfd_for_user_mode_is_refused_with_the_cure,
    no_kvm_is_status_77,
    a_damaged_snapshot_is_refused,
    wrong_arguments_are_status_2,
    help_is_told,
    lost_output_is_no_success,
]

if __name__ == "__main__":
    try:
        STATUS = common.main(TESTS)
    finally:
        copies.remove()
        shutil.rmtree(scratch)
    sys.exit(STATUS)
