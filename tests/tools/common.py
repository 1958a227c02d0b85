# SPDX-License-Identifier: MIT
"""What the tests of the programs share: TAP, and running a program as somebody else."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback

NOBODY = 65534
NO_FILTER_HERE = 125  # without-userfaultfd could not do its work


class Skip(Exception):
    """The reason why a test cannot run here."""


def check(condition, *what):
    if not condition:
        raise AssertionError(" ".join(str(w) for w in what))


def equal(got, wanted, what=""):
    check(got == wanted, what, "got", repr(got), "wanted", repr(wanted))


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def run(argv, **options):
    """Run to the end; the result has returncode, stdout and stderr."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options.setdefault("timeout", 100)
    return subprocess.run(argv, universal_newlines=True, check=False, **options)


class Copies:
    """
    Copies of programs in a directory that everybody may enter, with the libraries that the build
    made: the build directory may be inside a home that another user cannot see.
    """

    def __init__(self, *programs):
        self.dir = tempfile.mkdtemp(prefix="libuffd-test-")
        os.chmod(self.dir, 0o755)
        self.env = dict(os.environ)
        self.env["LD_LIBRARY_PATH"] = self.dir
        for program in programs:
            self.add(program)
            for library in self.built_libraries(program):
                self.add(library)

    def add(self, path):
        copy = os.path.join(self.dir, os.path.basename(path))
        shutil.copyfile(path, copy)
        os.chmod(copy, 0o755)

    @staticmethod
    def built_libraries(program):
        listing = run(["ldd", program]).stdout
        return re.findall(r"=> (/\S*libuffd\S*) ", listing)

    def path(self, program):
        return os.path.join(self.dir, os.path.basename(program))

    def remove(self):
        shutil.rmtree(self.dir)

    def as_nobody(self, argv, prefix=()):
        """Run a program, one of the copies, as user nobody. Needs root."""
        if os.getuid() != 0:
            raise Skip("needs root, to become another user")
        return run([*prefix, *argv], user=NOBODY, group=NOBODY, extra_groups=[], env=self.env,
                   cwd="/")


def main(tests):
    """Run every test of a list of functions, and print TAP."""
    failed = 0
    print("1..%d" % len(tests))
    for number, test in enumerate(tests, 1):
        name = test.__name__.replace("_", " ")
        try:
            test()
            print("ok %d - %s" % (number, name))
        except Skip as reason:
            print("ok %d - %s # SKIP %s" % (number, name, reason))
        except Exception:  # every one is a failed test, and told
            failed += 1
            for line in traceback.format_exc().splitlines():
                print("#", line)
            print("not ok %d - %s" % (number, name))
        sys.stdout.flush()
    return 1 if failed else 0
