# SPDX-License-Identifier: MIT
"""One table of all that ran: kernels across, tests down."""
import collections
import json

from guest import Case, judge_console, explain


# ---- From what happened to what it means


def settle(outcome, matrix, log, ran_all):
    """Add what the runner itself saw as cases of the program "guest", and hold skips against the entry."""
    guest = outcome.guest
    cases = []

    def check(name, why):
        cases.append(Case(name, "fail" if why else "pass", why))

    trouble, memory = judge_console(outcome, log)
    if not outcome.finished:
        reason = "; ".join(outcome.problems) or "it never said that it was done"
        if memory:
            reason += f"; out of memory ({memory[0]}): give it more than {guest.memory} in matrix.toml"
        check("boots and runs to its end", f"{reason}. The end of its log ({log}):\n" + "\n".join(explain(guest, log)))
    else:
        check("boots and runs to its end", "; ".join(outcome.problems))
    if outcome.release:
        right = release_fits(outcome.release, guest.release)
        check("is the kernel that the matrix names",
              "" if right else f"it is {outcome.release}, and should be {guest.release}")
    if outcome.facts:
        check("offers what the matrix says", ", ".join(lacking(outcome, matrix)))
        size = [f.split()[1] for f in outcome.facts if f.startswith("page-size ")]
        check("has pages of the size that the matrix says",
              "" if size == [str(guest.page_size)] else f"{size} instead of {guest.page_size}")
    if memory and outcome.finished:
        trouble.insert(0, f"ran out of memory: give it more than {guest.memory} in matrix.toml, or the test less to do")
    check("the kernel's log is clean", "\n".join(trouble[:12]))
    for program, listed in outcome.programs.items():
        for case in listed:
            judge_skip(case, guest, matrix)
        if outcome.finished and not listed and program != "guest":
            listed.append(Case("has cases that match", "skip" if not ran_all else "fail", "needs nothing: no case matched"))
    outcome.programs = {"guest": cases, **{p: c for p, c in outcome.programs.items() if p != "guest"}}


def lacking(outcome, matrix):
    """Features that the entry promises and the kernel does not show."""
    shown = {f.split()[1] for f in outcome.facts if f.startswith("feature ")}
    return sorted(w for w in outcome.guest.must if w in matrix.features and w not in shown)


def release_fits(release, wanted):
    """wanted is how uname -r begins ("6.1."), or from which on it is right (">=7.2")."""
    if not wanted.startswith(">="):
        return release.startswith(wanted)
    numbers = [int(n) for n in release.replace("-", ".").split(".")[:2]]
    return numbers >= [int(n) for n in wanted[2:].split(".")]


def judge_skip(case, guest, matrix):
    if case.status != "skip" or case.why.startswith("needs nothing"):
        return
    broken = [w for w in case.needs if w in guest.must]
    unknown = [w for w in case.needs if not matrix.known(w)]
    if broken:
        case.status, case.why = "fail", f"skipped, but the matrix says that this guest has {', '.join(broken)} ({case.why})"
    elif unknown or not case.needs:
        case.status = "fail"
        case.why = f"skipped for a reason that matrix.toml does not know: {case.why}"


def totals(outcomes):
    count = collections.Counter(c.status for o in outcomes for cases in o.programs.values() for c in cases)
    return count["pass"], count["fail"], count["skip"]


# ---- Tables


def programs_in_order(outcomes):
    order = {}
    for outcome in outcomes:
        for program in outcome.programs:
            order.setdefault(program)
    return list(order)


def cell(cases):
    """One program in one guest, in a few letters."""
    if cases is None:
        return ""
    count = collections.Counter(c.status for c in cases)
    if count["fail"]:
        return f"FAIL {count['fail']}"
    return f"{count['pass']}" + (f" +{count['skip']} skip" if count["skip"] else "")


def summary_rows(outcomes):
    """A row a program; its cells say how many cases passed, were skipped, failed."""
    rows = [["", *[o.guest.name for o in outcomes]], ["uname -r", *[o.release or "-" for o in outcomes]]]
    for program in programs_in_order(outcomes):
        rows.append([program, *[cell(o.programs.get(program)) for o in outcomes]])
    return rows


def case_rows(outcomes):
    """A row a case."""
    rows = [["", *[o.guest.name for o in outcomes]]]
    for program in programs_in_order(outcomes):
        by_guest = [{c.name: c for c in o.programs.get(program, [])} for o in outcomes]
        names = dict.fromkeys(name for cases in by_guest for name in cases)
        for name in names:
            marks = []
            for cases in by_guest:
                case = cases.get(name)
                marks.append("" if not case else "pass" if case.status == "pass" else
                             "FAIL" if case.status == "fail" else "skip: " + ",".join(case.needs))
            rows.append([f"{program}: {name}", *marks])
    return rows


def text_table(rows):
    """Columns as wide as what is in them; too wide for a line, a guest's name is not cut all the same."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows) + "\n"


def turned(rows):
    """Programs across would be as wide as the terminal is not: guests across, in blocks of six."""
    blocks = []
    for at in range(1, len(rows[0]), 6):
        blocks.append(text_table([[row[0], *row[at:at + 6]] for row in rows]))
    return "\n".join(blocks)


def details(outcomes):
    """Every failure in full, and why what was skipped was."""
    out = []
    for outcome in outcomes:
        alike = collections.defaultdict(list)
        for program, case in outcome.failed():
            alike[program, case.why].append(case.name)
        for (program, why), names in alike.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            out.append(f"FAILED {outcome.guest.name}: {program}: {', '.join(names[:3])}{more}")
            out += ["    " + line for line in why.splitlines()]
    skips = collections.defaultdict(lambda: collections.Counter())
    for outcome in outcomes:
        for cases in outcome.programs.values():
            for case in cases:
                if case.status == "skip":
                    skips[case.why][outcome.guest.name] += 1
    for why, guests in sorted(skips.items()):
        out.append(f"skipped, {why}: " + ", ".join(f"{n} on {g}" for g, n in guests.items()))
    return "\n".join(out) + "\n" if out else ""


def markdown(outcomes):
    """For the README: how many cases of each program pass where, and what was not there to be tested."""
    rows = summary_rows(outcomes)
    head = ["| test program |" + "".join(f" {name} |" for name in rows[0][1:]),
            "|---|" + "---|" * (len(rows[0]) - 1)]
    body = ["| " + row[0] + " |" + "".join(f" {c or '-'} |" for c in row[1:]) for row in rows[1:]]
    return "\n".join(head + body) + "\n"


def as_json(outcomes):
    passed, failed, skipped = totals(outcomes)
    return json.dumps({
        "passed": passed, "failed": failed, "skipped": skipped,
        "guests": [{
            "name": o.guest.name, "about": o.guest.about, "release": o.release, "package": o.package,
            "architecture": o.guest.arch, "accelerator": o.accel, "seconds": round(o.seconds, 1), "log": o.log,
            "must": sorted(o.guest.must), "facts": sorted(o.facts),
            "programs": {p: [{"name": c.name, "result": c.status, **({"why": c.why} if c.why else {}),
                              **({"needs": c.needs} if c.needs else {})} for c in cases]
                         for p, cases in o.programs.items()},
            "took": o.took,
        } for o in outcomes],
    }, indent=1) + "\n"


def as_tap(outcomes):
    """Every case of every guest, for scripts/tally.py."""
    lines, n = [], 0
    for o in outcomes:
        for program, cases in o.programs.items():
            for c in cases:
                n += 1
                skip = f" # SKIP {c.why}" if c.status == "skip" else ""
                lines.append(f"{'not ok' if c.status == 'fail' else 'ok'} {n} - {o.guest.name}: {program}: {c.name}{skip}")
                if c.status == "fail":
                    lines += ["# " + line for line in c.why.splitlines()]
    return "\n".join(lines + [f"1..{n}"]) + "\n"
