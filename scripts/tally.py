#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Add up the test results of several Meson builds, case by case, and list what failed or was skipped.

usage: tally.py [--failed "NAMES"] [--tap FILE] BUILD_DIR...

The last line is "N passed, N failed, N skipped"; the exit status is 0 only if nothing failed and
something passed. Below a failure is what its program said of it.
"""
import argparse
import collections
import itertools
import json
import os
import re
import sys

PLAN = re.compile(r"^1\.\.(\d+)", re.M)
CASE = re.compile(r"^(not )?ok\b[ \t]*(\d+)?[ \t]*-?[ \t]*(.*)$", re.M)
REASON = re.compile(r"# SKIP *(.*)$", re.M | re.I)

SAID = 6  # lines for a failure, each of so many characters at most:
WIDE = 1500

passed, failed, skipped = [], [], []
said = {}  # of a failure: what was said with it


def remarks(text, match):
    """What a file of TAP says of a failure: some programs do before its line, others after it."""
    def comments(lines, most):
        return list(itertools.islice(itertools.takewhile(lambda line: line.startswith("#"), lines), most))

    before = comments(reversed(text[:match.start()].splitlines()), SAID // 2)[::-1]
    after = comments(text[match.end() + 1:].splitlines(), SAID)
    return [line[:WIDE] for line in before + after]


def take_tap(where, text, result_ok):
    """Count the cases of one program's output; whatever does not add up is a failure too."""
    plan = PLAN.search(text)
    cases = failures = 0
    for match in CASE.finditer(text):
        name = match[3].strip() or f"case {match[2]}"
        label = f"{where}: {name}"
        cases += 1
        if match[1]:
            failed.append(label)
            said[label] = remarks(text, match)
            failures += 1
        elif REASON.search(match[0]):
            skipped.append(label)
        else:
            passed.append(label)
    if plan and int(plan[1]) != cases:
        failed.append(f"{where}: {cases} cases of {plan[1]} reported")
    elif not result_ok and not failures:
        failed.append(f"{where}: failed as a whole")
    elif not cases:
        failed.append(f"{where}: reported no case")


def take_build(build):
    name = os.path.basename(build)
    log = os.path.join(build, "meson-logs", "testlog.json")
    if not os.path.exists(log):
        failed.append(f"{name}: ran no test")
        return []
    reasons = []
    with open(log, encoding="utf-8") as lines:
        for line in lines:
            test = json.loads(line)
            where = f"{name}: {test['name'].split(' / ')[-1].split(':')[-1]}"
            text = test.get("stdout", "")
            take_tap(where, text, test["result"] in ("OK", "SKIP"))
            reasons += REASON.findall(text)
    return reasons


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--failed", default="", help="builds that failed")
parser.add_argument("--tap", action="append", default=[], help="a file of TAP")
parser.add_argument("builds", nargs="*")
args = parser.parse_args()

broken = args.failed.split()
failed += [f"{name}: does not build" for name in broken]
why = collections.Counter()
for path in args.tap:
    with open(path, encoding="utf-8") as f:
        text = f.read()
    take_tap(os.path.basename(path), text, True)
    if not PLAN.search(text):
        failed.append(f"{os.path.basename(path)}: ended before its plan")
for build in args.builds:
    if os.path.basename(build) not in broken:
        why.update(take_build(build))

for reason, times in sorted(why.items()):
    print(f"skipped {times}x: {reason}")
for label in failed:
    print("FAILED", label)
    for line in said.get(label, []):
        print("   ", line)
print(f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped")
sys.exit(1 if failed or not passed else 0)
