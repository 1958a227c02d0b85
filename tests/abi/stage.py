# SPDX-License-Identifier: MIT
"""What this build installs, in a directory of its own; TAP; C programs as a stranger compiles them."""
import os
import shutil
import subprocess
import sys
import tempfile


MOST_LINES = 40  # of one case: whoever mends these sees the rest


class Stage:
    """An installed tree. Use it with `with`: it is removed at the end."""

    def __init__(self, meson, build):
        self.meson, self.build = meson, build

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="libuffd-stage-")
        try:
            subprocess.run([self.meson, "install", "-C", self.build, "--no-rebuild", "--quiet", "--destdir",
                            os.path.join(self.dir, "root")], check=True, stdout=subprocess.DEVNULL)
        except BaseException:
            shutil.rmtree(self.dir)
            raise
        self.root = os.path.join(self.dir, "root")
        self.work = os.path.join(self.dir, "work")
        os.mkdir(self.work)
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.dir)

    def find(self, name, mode=os.R_OK):
        """The directory below the root that has a file of this name, which can be used so; or None."""
        for where, _, files in os.walk(self.root):
            if name in files and os.access(os.path.join(where, name), mode):
                return where
        return None

    def has_tool(self, name):
        return self.find(name, os.X_OK) is not None

    def mandir(self):
        """The root of the installed manual, or None."""
        for where, dirs, _ in os.walk(self.root):
            if "man3" in dirs:
                return where
        return None

    def environment(self):
        """For pkg-config, the linker at run time, and whoever looks for a tool."""
        env = dict(os.environ)
        pc = self.find("libuffd.pc")
        env["PKG_CONFIG_PATH"] = pc
        env["PKG_CONFIG_SYSROOT_DIR"] = self.root
        env["LD_LIBRARY_PATH"] = os.path.dirname(pc)
        tool = self.find("uffd-info", os.X_OK)
        if tool:
            env["PATH"] = tool + os.pathsep + env["PATH"]
        return env

    def compile(self, compiler, source, library, program):
        """None, or what is wrong with it. Flags come from pkg-config alone."""
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", library], env=self.environment(),
                               check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        result = subprocess.run([*compiler, "-Wall", "-Wextra", "-Werror", source, *flags, "-o", program],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return result.stdout if result.returncode else None

    def run(self, argv, **options):
        return subprocess.run(argv, env=self.environment(), cwd=self.work, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60,
                              check=False, **options)


class Tap:
    """One line a case, with what is wrong as comments."""

    def __init__(self):
        self.count = self.failed = 0

    def case(self, name, problems):
        self.count += 1
        print("not ok" if problems else "ok", self.count, "-", name)
        lines = [line for problem in problems or [] for line in str(problem).splitlines()]
        for line in lines[:MOST_LINES]:
            print("#", line)
        if len(lines) > MOST_LINES:
            print(f"# ... and {len(lines) - MOST_LINES} more")
        self.failed |= bool(problems)
        sys.stdout.flush()

    def skip(self, name, why):
        self.count += 1
        print(f"ok {self.count} - {name} # SKIP {why}")

    def finish(self):
        print(f"1..{self.count}")
        sys.exit(1 if self.failed else 0)
