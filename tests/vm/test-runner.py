#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What tests/vm/run says when things go wrong: never a green table, always the guest and the remedy. TAP.

Boots a few guests that panic, hang, starve or lie; wants QEMU, and the packages that a run fetches.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "lib"))
sys.dont_write_bytecode = True
import guest as guests  # noqa: E402
import report  # noqa: E402
from matrix import Matrix  # noqa: E402
from packages import Problem  # noqa: E402

RUN = os.path.join(HERE, "run")
CACHE = os.environ.get("LIBUFFD_VM_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "libuffd-vm")

# One quick case is all that these guests are booted for.
CASE = ["--test", "open:close_takes_null", "--accel", "tcg"]
KERNEL = r"""
features = ["rwp", "poison"]
[words]
root = "root"
[kernel."6.1"]
about = "bookworm"
suites = ["bookworm"]
package = '{package}'
release = "{release}"
arch = "x86_64"
page_size = 4096
must = []
"""
PACKAGE = r"linux-image-6\.1\.[0-9]+-[0-9]+-cloud-amd64"


def matrix_text(guests_text, package=PACKAGE, release="6.1."):
    return KERNEL.format(package=package, release=release) + guests_text


def guest_text(name, more=""):
    return f'[guest.{name}]\nabout = "{name}"\nkernel = "6.1"\n{more}\n'


def run(work, text, *args, prefix=(), env=None, cache=CACHE):
    """The runner on a matrix of our own: (exit status, what it printed, its JSON or None)."""
    matrix, out = os.path.join(work, "matrix.toml"), os.path.join(work, "matrix.json")
    with open(matrix, "w", encoding="utf-8") as f:
        f.write(text)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(out)
    done = subprocess.run([*prefix, sys.executable, RUN, "--matrix", matrix, "--cache", cache, "--out", work,
                           *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          env=dict(os.environ, **(env or {})))
    data = None
    if os.path.exists(out):
        with open(out, encoding="utf-8") as f:
            data = json.load(f)
    return done.returncode, done.stdout, data


def cases_of(data, name):
    guest = next(g for g in data["guests"] if g["name"] == name)
    return {c["name"]: c for c in guest["programs"]["guest"]}


def expect(condition, *what):
    if not condition:
        raise AssertionError("; ".join(str(w) for w in what))


def refused(work, text, *args, says, status=2, **kwargs):
    """The run ends with an error that says these words, and shows no table."""
    code, out, data = run(work, text, *args, **kwargs)
    expect(code == status, "exit status", code, out)
    for words in says:
        expect(words in out, f"it does not say '{words}'", out)
    expect(data is None, "it made a table all the same")


# ---- Without a guest


def a_matrix_that_is_wrong_is_told(work):
    refused(work, "guest = [", says=["matrix.toml"])
    refused(work, matrix_text(guest_text("g", 'colour = "red"')), says=["guest g", "colour"])
    refused(work, matrix_text(guest_text("g", 'must = ["wings"]')), says=["wings", "words"])
    refused(work, matrix_text('[guest.g]\nabout = "g"\nkernel = "9"\n'), says=["guest g", "no kernel 9"])
    refused(work, matrix_text(""), says=["no guest"])


def an_unknown_guest_or_test_is_told(work):
    text = matrix_text(guest_text("g"))
    refused(work, text, "--kernel", "h", says=["no guest is called h", "--list"])
    refused(work, text, "--test", "flying", says=["no test program is called flying", "--list"])


def no_qemu_is_told_with_the_remedy(work):
    only = os.path.join(work, "bin")
    os.makedirs(only)
    for tool in ("apt-get", "dpkg-deb", "dpkg", "sh", "cpio", "setpriv"):
        os.symlink(shutil.which(tool), os.path.join(only, tool))
    refused(work, matrix_text(guest_text("g")), env={"PATH": only},
            says=["qemu-system-x86_64", "scripts/bootstrap check"])


def no_network_and_an_empty_cache_is_told(work):
    refused(work, matrix_text(guest_text("g")), cache=os.path.join(work, "empty"), prefix=["unshare", "-n"],
            says=["package lists", "is the network there"])


def a_kernel_that_has_gone_is_told(work):
    code, out, data = run(work, matrix_text(guest_text("g"), package="linux-image-6.1-that-was"), *CASE)
    expect(code == 1, "exit status", code, out)
    case = cases_of(data, "g")["boots and runs to its end"]
    expect(case["result"] == "fail" and "that-was" in case["why"] and "matrix.toml" in case["why"], case)


def cached_kernel(work):
    """A cache that shares all with the real one but the kernel's package, which is a copy."""
    _, out, data = run(work, matrix_text(guest_text("g")), *CASE)
    # Packages that were the latest once may be there too.
    kernel = data["guests"][0]["package"].partition(" ")[0] if data else ""
    expect(kernel, "no kernel", out)
    cache = os.path.join(work, "cache")
    shutil.copytree(CACHE, cache, copy_function=os.link)
    debs = os.path.join(cache, "debs")
    for name in os.listdir(debs):
        if name.startswith(kernel + "_"):
            path = os.path.join(debs, name)
            os.unlink(path)
            shutil.copy(os.path.join(CACHE, "debs", name), path)
            yield cache, path
    raise AssertionError("no package of 6.1 in the cache")


def a_corrupt_package_is_not_used(work):
    cache, path = next(cached_kernel(work))
    with open(path, "r+b") as f:
        f.seek(100000)
        f.write(b"not what it was")
    text = matrix_text(guest_text("g"))
    # With no network there is nothing to put in its place.
    code, out, data = run(work, text, *CASE, cache=cache, prefix=["unshare", "-n"])
    case = cases_of(data, "g")["boots and runs to its end"]
    expect(code == 1 and "corrupt" in out, code, out)
    expect(case["result"] == "fail" and "cannot be fetched" in case["why"] and "linux-image-6.1" in case["why"], case)
    # With one it is fetched again.
    with open(path, "wb") as f:
        f.write(b"short")
    code, out, data = run(work, text, *CASE, cache=cache)
    expect(code == 0 and "corrupt" in out, code, out)


def a_full_disk_is_told(work):
    small = os.path.join(work, "small")
    os.makedirs(small)
    inside = f"mount -t tmpfs -o size=1m small {small} && exec \"$@\""
    refused(work, matrix_text(guest_text("g")), *CASE, env={"TMPDIR": small}, says=["is the disk full?"],
            prefix=["unshare", "-m", "sh", "-c", inside, "sh"])


# ---- With guests


def what_goes_wrong_in_a_guest_is_never_green(work):
    text = matrix_text(
        guest_text("panics", 'append = "rdinit=/nowhere"') +
        guest_text("crashes", 'setup = "echo c >/proc/sysrq-trigger"') +
        guest_text("hangs", 'setup = "sleep 1000"') +
        guest_text("starves", 'memory = "112M"') +
        guest_text("warns", "setup = \"echo 'WARNING: CPU: 0 PID: 1 at nowhere' >/dev/kmsg\"") +
        guest_text("stumbles", 'setup = "false"') +
        guest_text("promises", 'must = ["rwp"]') +
        guest_text("works"))
    code, out, data = run(work, text, *CASE, "--idle", "60")
    expect(code == 1, "exit status", code, out)
    whole = "boots and runs to its end"
    for name, words in {"panics": "went down", "crashes": "went down", "hangs": "no word for 60 s",
                        "starves": "112M", "stumbles": "set-up"}.items():
        case = cases_of(data, name)[whole]
        expect(case["result"] == "fail" and words in case["why"], name, case)
        expect(f"FAILED {name}: guest" in out and f"logs/{name}" in out, "not told where its log is", name)
    expect(cases_of(data, "crashes")["the kernel's log is clean"]["result"] == "fail", "a panic in the log")
    expect(cases_of(data, "warns")["the kernel's log is clean"]["result"] == "fail", "a warning in the log")
    expect(cases_of(data, "promises")["offers what the matrix says"]["why"] == "rwp", cases_of(data, "promises"))
    expect(all(c["result"] == "pass" for c in cases_of(data, "works").values()), cases_of(data, "works"))


def another_kernel_than_the_matrix_names_is_a_failure(work):
    code, _, data = run(work, matrix_text(guest_text("g"), release=">=7.2"), *CASE)
    case = cases_of(data, "g")["is the kernel that the matrix names"]
    expect(code == 1 and case["result"] == "fail" and "7.2" in case["why"], code, case)


def qemus_of(pid):
    """The machines below a process, by /proc: each of its threads may have started one."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", encoding="utf-8") as f:
                    todo += [int(c) for c in f.read().split()]
            with open(f"/proc/{parent}/comm", encoding="utf-8") as f:
                if f.read().startswith("qemu-system"):
                    found.append(parent)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_for(what, condition):
    """Look again and again, with pauses that leave the processor to those who are waited for."""
    deadline = time.monotonic() + 600
    while not (got := condition()):
        expect(time.monotonic() < deadline, "waited in vain for " + what)
        time.sleep(0.05)
    return got


def ended(how):
    def an_interrupted_run_leaves_nothing(work):
        tmp, matrix = os.path.join(work, "tmp"), os.path.join(work, "matrix.toml")
        os.makedirs(tmp)
        with open(matrix, "w", encoding="utf-8") as f:
            f.write(matrix_text(guest_text("g", 'setup = "sleep 1000"')))
        process = subprocess.Popen([sys.executable, RUN, "--matrix", matrix, "--out", work, *CASE], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=dict(os.environ, TMPDIR=tmp))
        machines = wait_for("a machine", lambda: qemus_of(process.pid))
        process.send_signal(how)
        process.send_signal(how)  # as timeout(1) does: to the process, and to its group
        expect(process.wait(600) != 0, "an interrupted run was a success")
        wait_for("the end of the machine", lambda: not any(os.path.exists(f"/proc/{m}") for m in machines))
        if how != signal.SIGKILL:
            expect(not os.listdir(tmp), "left behind", os.listdir(tmp))
    an_interrupted_run_leaves_nothing.__name__ += "_" + how.name.lower()
    return an_interrupted_run_leaves_nothing


# ---- The results line, with no guest at all


def outcome_of(lines, must=()):
    """What the runner makes of a guest that said this."""
    matrix = Matrix(os.path.join(HERE, "matrix.toml"))
    guest = matrix.guests[0]
    guest.must = set(must)
    outcome = guests.Outcome(guest)
    reader = guests.Reader(outcome, lambda *_: None)
    for line in ["#@ ready", *lines]:
        reader.line(line)
    report.settle(outcome, matrix, "/nonexistent", True)
    return {f"{p}: {c.name}": c for p, cases in outcome.programs.items() for c in cases}


def a_program_that_dies_or_loses_cases_is_a_failure(_):
    for lines in (["#@ begin x", "1..2", "ok 1 - a", "#@ end x 139", "#@ done"],
                  ["#@ begin x", "ok 1 - a", "#@ end x 0", "#@ done"],
                  ["#@ begin x", "#@ end x 0", "#@ done"],
                  ["#@ begin x", "1..1", "ok 1 - a", "#@ end x 1", "#@ done"]):
        case = outcome_of(lines)["x: runs to its end"]
        expect(case.status == "fail", lines)
    cases = outcome_of(["#@ begin x", "1..2", "not ok 1 - a", "# 1 != 2", "ok 2 - b", "#@ end x 1", "#@ done"])
    expect(cases["x: a"].status == "fail" and cases["x: a"].why == "# 1 != 2", cases)
    expect(cases["x: b"].status == "pass", cases)


def a_skip_is_held_against_the_entry(_):
    lines = ["#@ begin x", "1..3", "ok 1 - a # SKIP needs move,rwp: none", "ok 2 - b # SKIP needs wings: none",
             "ok 3 - c # SKIP", "#@ end x 0", "#@ done"]
    cases = outcome_of(lines)
    expect(cases["x: a"].status == "skip", "a skip that is all right")
    expect(cases["x: b"].status == "fail" and "wings" in cases["x: b"].why, "a word that nobody knows")
    expect(cases["x: c"].status == "fail", "a skip without a reason")
    expect(outcome_of(lines, must=["rwp"])["x: a"].status == "fail", "a skip of what must be there")


def a_guest_that_stops_in_the_middle_is_a_failure(_):
    cases = outcome_of(["#@ begin x", "1..2", "ok 1 - a"])
    expect(cases["guest: boots and runs to its end"].status == "fail", cases)


def what_a_program_leaves_behind_is_a_failure(_):
    cases = outcome_of(["#@ begin x", "1..1", "ok 1 - a", "#@ end x 0", "#@ left x huge pages reserved: 8", "#@ done"])
    expect(cases["x: leaves the machine as it was"].why == "huge pages reserved: 8", cases)


def guests_share_the_processors(_):
    """With two: first those that want both, each alone, then the others side by side."""
    begun, busy, lock, both = [], set(), threading.Lock(), threading.Barrier(2, timeout=60)

    def work(item):
        name, wants = item
        with lock:
            begun.append(name)
            busy.add(item)
            expect(sum(min(w, 2) for _, w in busy) <= 2, "more at once than there are places", busy)
        if wants == 1:
            both.wait()
        with lock:
            busy.remove(item)
        return name

    items = [("a", 1), ("b", 2), ("c", 1), ("d", 4)]
    expect(guests.spread(items, lambda item: item[1], 2, work) == ["a", "b", "c", "d"], "the order of the results")
    expect(begun[:2] == ["d", "b"], begun)


TESTS = [
    guests_share_the_processors,
    a_program_that_dies_or_loses_cases_is_a_failure,
    a_skip_is_held_against_the_entry,
    a_guest_that_stops_in_the_middle_is_a_failure,
    what_a_program_leaves_behind_is_a_failure,
    a_matrix_that_is_wrong_is_told,
    an_unknown_guest_or_test_is_told,
    no_qemu_is_told_with_the_remedy,
    no_network_and_an_empty_cache_is_told,
    a_kernel_that_has_gone_is_told,
    a_corrupt_package_is_not_used,
    a_full_disk_is_told,
    what_goes_wrong_in_a_guest_is_never_green,
    another_kernel_than_the_matrix_names_is_a_failure,
    ended(signal.SIGTERM),
    ended(signal.SIGKILL),
]


def main():
    wanted = [t for t in TESTS if len(sys.argv) < 2 or sys.argv[1] in t.__name__]
    print(f"1..{len(wanted)}", flush=True)
    failed = 0
    for number, test in enumerate(wanted, 1):
        with tempfile.TemporaryDirectory(prefix="libuffd-runner-") as work:
            try:
                test(work)
                print(f"ok {number} - {test.__name__}", flush=True)
            except (AssertionError, Problem, KeyError, OSError, RuntimeError, StopIteration) as error:
                failed += 1
                print(f"not ok {number} - {test.__name__}")
                for line in f"{type(error).__name__}: {error}".splitlines():
                    print("# " + line, flush=True)
    return 1 if failed else 0


sys.exit(main())
