# SPDX-License-Identifier: MIT
"""One guest, from the start of QEMU to its end: what came over the lines, and what it means."""
import concurrent.futures
import os
import re
import select
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

from packages import Problem

# What QEMU can do without being asked is left out: the guest is a kernel, memory and two serial lines.
MACHINES = {
    # With all that "max" has, 6.12 meets a double fault at boot now and then under QEMU 7.2: five-level
    # page tables and cmpxchg16b are what it takes.
    # Without "fast" string instructions, which QEMU does byte by byte, kernels clear and copy pages by
    # whole words: what the tests do most, and the matrix takes half the time.
    "x86_64": {"tcg": ["-cpu", "max,la57=off,-cx16,-erms,-fsrm"],
               "kvm": ["-accel", "kvm", "-cpu", "host"],
               "console": "ttyS0", "results": "/dev/ttyS1", "device": "isa-serial,chardev=results"},
    "aarch64": {"tcg": ["-machine", "virt", "-cpu", "max,pauth-impdef=on"],
                "kvm": ["-machine", "virt", "-accel", "kvm", "-cpu", "host"],
                "console": "ttyAMA0", "results": "/dev/ttyS0", "device": "pci-serial,chardev=results"},
}

# What a healthy kernel does not say. "Call Trace" comes with most of them, and is there for the rest.
TROUBLE = re.compile(
    r"WARNING: |\bBUG: |\bOops\b|general protection fault|Unable to handle kernel|"
    r"kernel BUG at|Kernel panic|rcu: INFO:|rcu.*detected stall|soft lockup|hard LOCKUP|"
    r"blocked for more than|Call Trace:|Bad page state|Bad rss-counter|double fault|"
    r"scheduling while atomic|sleeping function called|Memory failure: .*BUG")

OUT_OF_MEMORY = re.compile(r"Out of memory|System is deadlocked on memory|invoked oom-killer")


@dataclass
class Case:
    name: str
    status: str  # pass, skip, fail
    why: str = ""  # of a skip: "needs WORDS: reason"; of a failure: what its program said
    needs: list = field(default_factory=list)


@dataclass
class Outcome:
    """All that is known of a guest's run. Whatever kept it from its end is in problems."""
    guest: object
    release: str = ""
    package: str = ""
    accel: str = ""
    facts: set = field(default_factory=set)
    programs: dict = field(default_factory=dict)  # name: list of Case
    took: dict = field(default_factory=dict)  # name: seconds
    problems: list = field(default_factory=list)
    finished: bool = False
    seconds: float = 0
    log: str = ""  # directory

    def failed(self):
        return [(p, c) for p, cases in self.programs.items() for c in cases if c.status == "fail"]


class Running:
    """The QEMU processes that are alive, so that an end of ours is the end of them too."""

    def __init__(self):
        self._lock = threading.RLock()  # a second signal may come while the first is being seen to
        self._processes = set()
        self.stopping = False

    def start(self, args, **kwargs):
        with self._lock:
            if self.stopping:
                raise Problem("interrupted")
            process = subprocess.Popen(args, **kwargs)
            self._processes.add(process)
            return process

    def stop(self, process):
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        with self._lock:
            self._processes.discard(process)

    def stop_all(self):
        with self._lock:
            self.stopping = True
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)


RUNNING = Running()


def threads(guest, accel):
    """
    The processors of an emulated guest take turns in one thread, unless it is parallel. Where two guests with two threads
    each share two processors, the host often runs what waits for a lock and not what has it, and that spins: 5.10 and 6.1
    side by side took 382 s so, 209 s in turns; 6.1 alone takes 124 s.
    """
    if accel == "kvm":
        return []
    return ["-accel", "tcg,thread=" + ("multi" if guest.parallel else "single")]


def places(guest, accel):
    """How many processors it keeps busy."""
    return guest.cpus if guest.parallel and accel == "tcg" else 1


class Places:
    """The processors that guests may keep busy at once."""

    def __init__(self, number):
        self.number = self.free = number
        self.changed = threading.Condition()

    def take(self, number):
        """Wait for so many, or for all if there are fewer; how many to give back."""
        number = min(number, self.number)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= number)
            self.free -= number
        return number

    def give(self, number):
        with self.changed:
            self.free += number
            self.changed.notify_all()


def spread(items, wants, jobs, work):
    """work(item) for each, no more at once than want jobs places; what it returned, in order."""
    free = Places(jobs)

    def one(item, taken):
        try:
            return work(item)
        finally:
            free.give(taken)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        results = {}
        # Who wants several places begins: later there are seldom so many free at once. And one after the other: in a crowd
        # who wants one place would always be before who wants two.
        for at in sorted(range(len(items)), key=lambda i: -wants(items[i])):
            results[at] = pool.submit(one, items[at], free.take(wants(items[at])))
        return [results[at].result() for at in range(len(items))]


def qemu_command(guest, accel, image, initrd, console, append=""):
    machine = MACHINES[guest.machine]
    # ramfs: the default for the root is tmpfs, which userfaultfd knows, and some tests want a file that it
    # does not know.
    kernel_args = (f"console={machine['console']} panic=-1 loglevel=7 rdinit=/init rootfstype=ramfs "
                   f"{guest.append} {append}").strip()
    # Should this process be killed with no chance to clean up, the kernel ends QEMU for it.
    return ["setpriv", "--pdeathsig", "KILL", f"qemu-system-{guest.machine}", *machine[accel], *threads(guest, accel),
            "-smp", str(guest.cpus), "-m", guest.memory, "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-kernel", image, "-initrd", initrd, "-append", kernel_args, *console]


def lines_to_files(guest, console):
    """The console into a file, the results to our standard input."""
    return ["-serial", f"file:{console}", "-chardev", "stdio,id=results,signal=off",
            "-device", MACHINES[guest.machine]["device"]]


SAID = 12  # lines of what a program said last, told of one that did not come to its end


class Reader:
    """Follows the results line, and makes cases of what the programs print."""

    PLAN = re.compile(r"^1\.\.(\d+)$")
    CASE = re.compile(r"^(not )?ok\b[ \t]*(\d+)?[ \t]*-?[ \t]*(.*?)(?:[ \t]*# SKIP *(.*))?$")
    NEEDS = re.compile(r"needs ([\w,-]+): ")

    def __init__(self, outcome, progress):
        self.outcome = outcome
        self.progress = progress
        self.program = None
        self.plan = None
        self.said = []  # by the program, since its last case
        self.began = 0.0

    def line(self, text):
        if text.startswith("#@ "):
            word, _, rest = text[3:].partition(" ")
            getattr(self, "on_" + word, lambda _: None)(rest)
        elif self.program:
            self._tap(text)

    def on_uname(self, rest):
        self.outcome.release = rest

    def on_fact(self, rest):
        self.outcome.facts.add(rest)

    def on_broken(self, rest):
        self.outcome.problems.append(rest)

    def on_ready(self, _):
        self.outcome.programs["guest"] = []

    def on_done(self, _):
        self.outcome.finished = True

    def on_begin(self, rest):
        self.program, self.plan, self.said, self.began = rest, None, [], time.monotonic()
        self.outcome.programs[rest] = []

    def on_left(self, rest):
        program, _, what = rest.partition(" ")
        self.outcome.programs[program].append(Case("leaves the machine as it was", "fail", what))

    def on_end(self, rest):
        program, status = rest.split()
        cases = self.outcome.programs[program]
        if self.plan is None or self.plan != len(cases):
            self._whole(f"{len(cases)} cases of {self.plan} reported, exit status {status}; last said: "
                        + " / ".join(self.said[-SAID:]))
        elif status != "0" and not any(c.status == "fail" for c in cases):
            self._whole(f"exit status {status}: " + " / ".join(self.said[-SAID:]))
        self.program = None
        self.outcome.took[program] = round(time.monotonic() - self.began, 1)
        self.progress(program, cases, self.outcome.took[program])

    def _whole(self, why):
        self.outcome.programs[self.program].append(Case("runs to its end", "fail", why))

    def _tap(self, text):
        plan, case = self.PLAN.match(text), self.CASE.match(text)
        if plan:
            self.plan = int(plan[1])
        elif case:
            name = case[3].strip() or f"case {case[2]}"
            if case[1]:
                self._case(Case(name, "fail", "\n".join(self.said)))
            elif case[4] is not None:
                needs = self.NEEDS.match(case[4])
                self._case(Case(name, "skip", case[4], needs[1].split(",") if needs else []))
            else:
                self._case(Case(name, "pass"))
        else:
            self._diagnosis(text)

    def _diagnosis(self, text):
        """Cmocka says what failed after it said that it failed; a test itself speaks before that."""
        cases = self.outcome.programs[self.program]
        if cases and cases[-1].status == "fail" and text.startswith("# "):
            cases[-1].why += ("\n" if cases[-1].why else "") + text
        else:
            self.said.append(text)

    def _case(self, case):
        self.outcome.programs[self.program].append(case)
        self.said = []

    def cut_off(self, why):
        """The line went dead."""
        if self.program:
            self._whole(f"{why}; last said: " + " / ".join(self.said[-SAID:]))
        self.outcome.problems.append(why + (f", in {self.program}" if self.program else ""))


def run(args, outcome, reader, log, idle, limit):
    """Start QEMU and follow it to its end, at most idle seconds without a word and limit in all."""
    begin = last = time.monotonic()
    with open(os.path.join(log, "results"), "wb") as keep, \
         open(os.path.join(log, "qemu"), "wb") as errors:
        process = RUNNING.start(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        rest = b""
        try:
            while True:
                wait = min(last + idle, begin + limit) - time.monotonic()
                if wait <= 0:
                    reader.cut_off(f"no word for {idle} s" if last + idle < begin + limit
                                   else f"not done after {limit} s")
                    break
                if not select.select([process.stdout], [], [], wait)[0]:
                    continue
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    break
                last = time.monotonic()
                keep.write(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    reader.line(line.decode("utf-8", "replace").rstrip("\r"))
                if outcome.finished:
                    # It is about to switch itself off; if it cannot, the end is the same.
                    idle = min(idle, 30)
        finally:
            if outcome.finished:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    pass
            RUNNING.stop(process)
    outcome.seconds = time.monotonic() - begin
    if RUNNING.stopping:
        outcome.problems.append("interrupted")
    elif not outcome.finished and not outcome.problems:
        reader.cut_off("the machine went down before it was done")


# Emulating several processors, QEMU 7.2 now and then runs an instruction that the kernel has just patched,
# and the kernel dies of it (an int3 that nobody expects), nearly always while it boots. So a guest that
# is emulated, and did not come to its first test, gets another try, which is told.
BOOTS = 3


def boot(args, outcome, new_reader, log, idle, limit, say):
    """run(), again if it was only the emulator's fault that the guest did not come up."""
    for attempt in range(1, BOOTS + 1):
        run(args, outcome, new_reader(), log, idle, limit)
        came_up = outcome.programs or outcome.finished
        if came_up or outcome.accel != "tcg" or attempt == BOOTS or RUNNING.stopping:
            return
        console = os.path.join(log, "console")
        if not os.path.exists(console):
            return  # QEMU itself gave up, and would again
        os.replace(console, f"{console}.{attempt}")
        say(f"{outcome.guest.name}: {outcome.problems[-1]} before its first test: booting it again "
            f"(the log of this boot is {os.path.relpath(log)}/console.{attempt})")
        outcome.problems.clear()


def judge_console(outcome, log):
    """The kernel's own log: any sign of trouble that the entry does not excuse is a failure."""
    try:
        with open(os.path.join(log, "console"), encoding="utf-8", errors="replace") as f:
            lines = f.read().splitlines()
    except FileNotFoundError:
        lines = []
    excused = [re.compile(e["pattern"]) for e in outcome.guest.ignore]
    found = [line.strip() for line in lines
             if TROUBLE.search(line) and not any(e.search(line) for e in excused)]
    memory = [line.strip() for line in lines if OUT_OF_MEMORY.search(line)]
    return found, memory


def explain(guest, log):
    """The end of what QEMU or the kernel said, for somebody who has only this line."""
    for name in ("qemu", "console"):
        path = os.path.join(log, name)
        if os.path.exists(path) and os.path.getsize(path):
            with open(path, encoding="utf-8", errors="replace") as f:
                return [line.rstrip() for line in f.read().splitlines()[-5:]]
    return [f"nothing was said at all: does the kernel suit the machine, and is {guest.memory} of memory enough?"]
