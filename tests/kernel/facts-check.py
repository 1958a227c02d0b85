#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every case that FACTS.md names exists, and every fact there has one or says "not shown". TAP.

usage: facts-check.py [FACTS.md [DIRECTORY]]     (the directory with the sources, test-PROGRAM.c)
"""
import fnmatch
import glob
import os
import re
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
HEAD = ["fact", "kernels", "shown by"]
NAME = re.compile(r"`([a-z-]+): ([a-z0-9_*]+)((?:/[A-Z0-9_]+)*)`")
FUNCTION = re.compile(r"^static void ([a-z0-9_]+)\(void \*\*state\)", re.M)


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def rows(text):
    """The rows of all tables but their heads, as (line number, cells). No cell has a bar in it."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if cells != HEAD and set("".join(cells)) != {"-"}:
                yield number, cells


class Sources:
    def __init__(self, directory):
        self.directory = directory
        self.known = {}
        self.headers = "".join(read(f) for f in glob.glob(os.path.join(glob.escape(directory), "*.h")))

    def of(self, program):
        """(text, cases) of a program, or None. A function that nothing names is no case: no array has it."""
        if program not in self.known:
            path = os.path.join(self.directory, f"test-{program}.c")
            self.known[program] = None
            if os.path.exists(path):
                text = read(path)
                used = {f for f in FUNCTION.findall(text) if len(re.findall(rf"\b{f}\b", text)) > 1}
                self.known[program] = text, used
        return self.known[program]

    def lacks(self, program, case, variant):
        """What is wrong with a name, or nothing."""
        found = self.of(program)
        if not found:
            return f"there is no test-{program}.c"
        text, cases = found
        if not fnmatch.filter(cases, case):
            return f"test-{program}.c has no such case"
        for word in variant.split("/")[1:]:
            if not re.search(rf"\b{word}\b", text + self.headers):
                return f"test-{program}.c has no variant {word}"
        return None


def check_names(text, sources):
    for number, line in enumerate(text.splitlines(), 1):
        for program, case, variant in NAME.findall(line):
            wrong = sources.lacks(program, case, variant)
            if wrong:
                yield f"line {number}: {program}: {case}{variant}: {wrong}"
        for word in re.findall(r"`([^`]*)`", line):
            if re.match(r"[\w-]+: ?\w", word) and not NAME.fullmatch(f"`{word}`"):
                yield f"line {number}: {word}: not in the form \"program: case\" or \"program: case/VARIANT\""


def check_rows(text):
    found = False
    for number, cells in rows(text):
        found = True
        if len(cells) != len(HEAD) or not all(cells):
            yield f"line {number}: not a fact, its kernels, and what shows it"
        elif not NAME.search(cells[2]) and not re.match(r"not shown\b.*:", cells[2], re.I):
            yield f"line {number}: neither a case nor \"Not shown\" with the reason: {cells[0]}"
    if not found:
        yield "there are no facts"


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "FACTS.md")
    text = read(path)
    sources = Sources(sys.argv[2] if len(sys.argv) > 2 else HERE)
    checks = [("the cases that are named exist", list(check_names(text, sources))),
              ("each fact has a case, or says that it is not shown", list(check_rows(text)))]
    print(f"1..{len(checks)}")
    for number, (name, wrong) in enumerate(checks, 1):
        print(f"{'not ok' if wrong else 'ok'} {number} - {name}")
        for line in wrong:
            print(f"# {line}")
    return 1 if any(wrong for _, wrong in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
