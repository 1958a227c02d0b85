# SPDX-License-Identifier: MIT
"""The example of snapshots. Arguments: uffd-info, live-snapshot."""

import os
import re
import shutil
import sys
import tempfile

import common
from common import Skip, check, equal, run

INFO, LIVE = [os.path.abspath(a) for a in sys.argv[1:3]]

scratch = tempfile.mkdtemp(prefix="libuffd-test-")


def needs_protection():
    result = run([INFO, "--require", "user-mode,pagefault-flag-wp"])
    if result.returncode:
        raise Skip("no userfaultfd that protects: " + " ".join(result.stderr.split()))


def path(name):
    return os.path.join(scratch, name)


def takes(name, *args):
    """Run it, which must succeed: the lines of its report."""
    result = run([LIVE, *args, path(name)])
    equal((result.returncode, result.stderr), (0, ""), args)
    lines = result.stdout.splitlines()
    for written, loaded in zip(lines[0::2], lines[1::2]):
        check(re.fullmatch(r"written  [\d.]+ MiB in \d+ ms, protected within [\d.]+ ms; meanwhile \d+ transfers, "
                           r"and \d+ pages copied before a write", written), written)
        check(re.fullmatch(r"loaded   \d+ keys, \d+ transfers undone, the sum is right", loaded), loaded)
    return lines


def the_table_is_one_instant_while_threads_change_it():
    needs_protection()
    lines = takes("image", "--keys", "200000", "--writers", "3", "--rounds", "5")
    equal(len(lines), 10)
    check(all(" 200000 keys," in line for line in lines[1::2]), lines)
    equal(os.listdir(scratch), ["image"])


def a_rate_is_kept_to():
    needs_protection()
    lines = takes("image", "--keys", "200000", "--writers", "2", "--rounds", "2", "--rate", "16")
    # 8 MiB, but for the last part, whose end nobody waits for.
    for line in lines[0::2]:
        check(int(re.search(r"MiB in (\d+) ms", line)[1]) >= 400, line)


def a_table_that_nobody_changes_has_nothing_undone():
    needs_protection()
    lines = takes("image", "--keys", "1000", "--writers", "0", "--rounds", "1")
    equal(lines[1], "loaded   1000 keys, 0 transfers undone, the sum is right")
    check("meanwhile 0 transfers, and 0 pages" in lines[0], lines)


def a_file_that_cannot_be_written_is_said():
    needs_protection()
    result = run([LIVE, "--keys", "1000", path("no/such/image")])
    equal((result.returncode, result.stdout), (1, ""))
    check("no/such/image: No such file or directory" in result.stderr, result.stderr)


def wrong_arguments_are_status_2():
    for args in ([], ["a", "b"], ["--keys", "1", "a"], ["--keys", "x", "a"], ["--writers", "65", "a"],
                 ["--rate", "0", "a"], ["--rounds", "0", "a"], ["--nonsense", "a"]):
        result = run([LIVE, *args])
        equal((result.returncode, result.stdout), (2, ""), args)
        check("live-snapshot" in result.stderr, result.stderr)


def help_is_told():
    result = run([LIVE, "--help"])
    equal((result.returncode, result.stderr), (0, ""))
    check(result.stdout.startswith("usage: live-snapshot "), result.stdout)


TESTS = [
    the_table_is_one_instant_while_threads_change_it,
    a_rate_is_kept_to,
    a_table_that_nobody_changes_has_nothing_undone,
    a_file_that_cannot_be_written_is_said,
    wrong_arguments_are_status_2,
    help_is_told,
]

if __name__ == "__main__":
    try:
        STATUS = common.main(TESTS)
    finally:
        shutil.rmtree(scratch)
    sys.exit(STATUS)
