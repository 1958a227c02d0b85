# SPDX-License-Identifier: MIT
"""write-watch. Arguments: uffd-info, write-watch."""

import json
import os
import re
import signal
import subprocess
import sys

import common
from common import Skip, check, equal, run

INFO, WATCH = [os.path.abspath(a) for a in sys.argv[1:3]]
PAGE = os.sysconf("SC_PAGESIZE")


def needs(*features):
    result = run([INFO, *(word for f in ("user-mode", *features) for word in ("--require", f))])
    if result.returncode:
        raise Skip(" ".join(result.stderr.split()))


def watched(*args):
    """What it says of each round, and at the end; every number must go with the others."""
    result = run([WATCH, "--json", "--interval", "1", *args])
    equal((result.returncode, result.stderr), (0, ""))
    *rounds, end = [json.loads(line) for line in result.stdout.splitlines()]
    for r in rounds:
        equal(r["bytes"], r["pages"] * PAGE)
        check(r["ranges"] <= r["pages"], r)
        check(r["seconds"] > 0 and r["asking_us"] > 0, r)
    equal(end["equal"], True)
    check(end["copied_pages"] >= sum(r["pages"] for r in rounds), end, rounds)
    return rounds, end


def no_write_is_missed(mechanism):
    rounds, end = watched("--mechanism", mechanism, "--size", "4", "--rounds", "20", "--writers", "3", "--rate", "0")
    equal(len(rounds), 20)
    equal(end["mechanism"], mechanism)
    check(end["copied_pages"] > 0, end)


def async_misses_no_write():
    needs("wp-async")
    no_write_is_missed("async")


def sync_misses_no_write():
    needs("pagefault-flag-wp")
    no_write_is_missed("sync")


def it_takes_what_there_is():
    needs("pagefault-flag-wp")
    has_async = not run([INFO, "--require", "wp-async"]).returncode
    _, end = watched("--size", "2", "--rounds", "2")
    equal(end["mechanism"], "async" if has_async else "sync")


def who_does_not_write_writes_nothing():
    needs("pagefault-flag-wp")
    rounds, end = watched("--size", "2", "--rounds", "3", "--writers", "0")
    equal([r["pages"] for r in rounds], [0, 0, 0])
    equal(end["copied_pages"], 0)


def it_says_the_same_in_words():
    needs("pagefault-flag-wp")
    result = run([WATCH, "--interval", "1", "--rounds", "3", "--size", "3"])
    equal((result.returncode, result.stderr), (0, ""))
    lines = result.stdout.splitlines()
    check(re.match(r"3 MiB, 2 writers, mechanism: (async|sync)$", lines[0]), lines)
    equal(len([line for line in lines if re.match(r" *\d+ pages written \( *[\d.]+ %\), +\d+ a second", line)]), 3)
    check(re.match(r"\d+ pages copied; the copy is the memory", lines[-1]), lines)


def an_interrupt_ends_it_with_a_last_look():
    needs("pagefault-flag-wp")
    with subprocess.Popen([WATCH, "--json", "--interval", "1", "--rounds", "0", "--size", "2"], stdout=subprocess.PIPE,
                          universal_newlines=True) as program:
        try:
            json.loads(program.stdout.readline())
            program.send_signal(signal.SIGINT)
            rest = program.stdout.read().splitlines()
            equal(program.wait(100), 0)
        finally:
            program.kill()
    equal(json.loads(rest[-1])["equal"], True)


def what_it_does_not_understand_it_refuses():
    for args in (["--size", "0"], ["--size", "x"], ["--writers", "65"], ["--mechanism", "best"], ["more"], ["--bad"],
                 ["--rounds", "-1"]):
        result = run([WATCH, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check(result.stderr, args)
    result = run([WATCH, "--help"])
    equal(result.returncode, 0)
    check("--mechanism" in result.stdout, result.stdout)


TESTS = [
    async_misses_no_write,
    sync_misses_no_write,
    it_takes_what_there_is,
    who_does_not_write_writes_nothing,
    it_says_the_same_in_words,
    an_interrupt_ends_it_with_a_last_look,
    what_it_does_not_understand_it_refuses,
]

if __name__ == "__main__":
    sys.exit(common.main(TESTS))
