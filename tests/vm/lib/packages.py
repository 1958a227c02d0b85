# SPDX-License-Identifier: MIT
"""Debian packages of other suites and architectures, by an apt of our own.

The archive is the one that this machine is configured for, and apt verifies it as always; but its
lists and downloads live in the cache directory, so that nothing on the machine changes.
"""
import glob
import hashlib
import os
import re
import subprocess
import tempfile
import time

LISTS_AGE = 24 * 3600  # seconds after which the lists are fetched again
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Problem(Exception):
    """What went wrong, and what helps."""


def command(args, what, **kwargs):
    """Run a command; what it said is in the Problem if it fails."""
    try:
        done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", check=False, **kwargs)
    except FileNotFoundError:
        raise Problem(f"{what}: there is no {args[0]}; run scripts/bootstrap check") from None
    if done.returncode:
        tail = "\n  ".join(done.stdout.strip().splitlines()[-6:])
        raise Problem(f"{what}: {os.path.basename(args[0])} failed with {done.returncode}:\n  {tail}")
    return done.stdout


def newer(a, b):
    """Is Debian version a later than b?"""
    return subprocess.run(["dpkg", "--compare-versions", a, "gt", b], check=False).returncode == 0


class Package:
    def __init__(self, stanza, suite, apt_arch):
        self.name = stanza["Package"]
        self.version = stanza["Version"]
        self.sha256 = stanza["SHA256"]
        self.suite = suite
        self.arch = apt_arch

    @property
    def spec(self):
        return f"{self.name}:{self.arch}={self.version}"


class Archive:
    def __init__(self, cache, suites, refresh=False, log=print):
        self.suites = suites
        self.log = log
        self.debs = os.path.join(cache, "debs")
        # apt forgets the lists of suites that it is not told of: each set of suites has a place of its own.
        self.cache = os.path.join(cache, "apt-" + hashlib.sha256(" ".join(suites).encode()).hexdigest()[:8])
        self.config = os.path.join(self.cache, "apt.conf")
        self.env = dict(os.environ, APT_CONFIG=self.config, LC_ALL="C.UTF-8")
        self._index = {}
        self._write_config()
        self._update(refresh)

    # -- sources: where this machine gets its own packages from

    def _repositories(self):
        """The suite of this machine, and its -security, each with the address it comes from."""
        release = dict(line.rstrip("\n").split("=", 1) for line in open("/etc/os-release", encoding="utf-8")
                       if "=" in line)
        codename = release.get("VERSION_CODENAME", "").strip('"')
        listed = command(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)",
                          "Created-By: Packages"], "the package sources of this machine")
        uris = {}
        for line in listed.splitlines():
            suite, uri = line.split(" ", 1)
            uris.setdefault(suite, uri)
        if codename not in uris:
            raise Problem("this machine's apt has no source for its own suite "
                          f"({codename or 'not a Debian system?'}): kernels cannot be found")
        return uris[codename], uris.get(codename + "-security")

    def _write_config(self):
        main, security = self._repositories()
        for part in ("lists/partial", "archives/partial"):
            os.makedirs(os.path.join(self.cache, part), exist_ok=True)
        os.makedirs(self.debs, exist_ok=True)
        signed = f"signed-by={KEYRING} " if os.path.exists(KEYRING) else ""
        with open(os.path.join(self.cache, "sources.list"), "w", encoding="utf-8") as f:
            for suite in self.suites:
                uri = security if suite.endswith("-security") else main
                if uri:
                    f.write(f"deb [{signed}arch=amd64,arm64] {uri} {suite} main\n")
        with open(self.config, "w", encoding="utf-8") as f:
            f.write(f'Dir::State::lists "{self.cache}/lists";\n'
                    'Dir::State::status "/dev/null";\n'
                    f'Dir::Cache "{self.cache}";\n'
                    f'Dir::Cache::archives "{self.cache}/archives";\n'
                    f'Dir::Etc::sourcelist "{self.cache}/sources.list";\n'
                    'Dir::Etc::sourceparts "/dev/null";\n'
                    'Dir::Etc::preferences "/dev/null";\n'
                    'Dir::Etc::preferencesparts "/dev/null";\n'
                    'APT::Architectures { "amd64"; "arm64"; };\n'
                    'Acquire::Languages "none";\n'
                    'APT::Sandbox::User "root";\n')

    def _update(self, refresh):
        stamp = os.path.join(self.cache, "updated")
        wanted = open(os.path.join(self.cache, "sources.list"), encoding="utf-8").read()
        try:
            fresh = (open(stamp, encoding="utf-8").read() == wanted
                     and time.time() - os.stat(stamp).st_mtime < LISTS_AGE)
        except FileNotFoundError:
            fresh = False
        if fresh and not refresh:
            return
        self.log("fetching the package lists of " + ", ".join(self.suites))
        try:
            command(["apt-get", "update", "-q", "--error-on=any"], "package lists", env=self.env)
        except Problem as problem:
            if not os.path.exists(stamp):
                raise Problem(f"{problem}\n  No kernel is known without them: is the network there, "
                              f"and is {self.cache} on a disk with room?") from None
            self.log(f"{problem}\n  going on with the lists of {time.ctime(os.stat(stamp).st_mtime)}")
            return
        with open(stamp, "w", encoding="utf-8") as f:
            f.write(wanted)

    # -- finding

    def _packages(self, suite, apt_arch):
        """Every package of a suite that could be of use, by name, the latest version of each."""
        key = suite, apt_arch
        if key in self._index:
            return self._index[key]
        # apt's own name for the list; asking it (indextargets) takes seconds each time.
        lists = glob.glob(os.path.join(self.cache, "lists", f"*_dists_{suite}_main_binary-{apt_arch}_Packages*"))
        found = {}
        for name in lists:
            text = command(["/usr/lib/apt/apt-helper", "cat-file", name], f"package list of {suite}",
                           env=self.env)
            for raw in re.finditer(r"^Package: (?:linux-|busybox|libcmocka|liburing|libjson-c).*?(?:\n\n|\Z)", text, re.M | re.S):
                stanza = dict(line.split(": ", 1) for line in raw[0].splitlines()
                              if ": " in line and line[0] != " ")
                package = Package(stanza, suite, apt_arch)
                old = found.get(package.name)
                if not old or newer(package.version, old.version):
                    found[package.name] = package
        self._index[key] = found
        return found

    def latest(self, suites, pattern, apt_arch):
        """The package of the highest version whose whole name matches."""
        best = None
        for suite in suites:
            for package in self._packages(suite, apt_arch).values():
                if re.fullmatch(pattern, package.name) and (not best or newer(package.version, best.version)):
                    best = package
        if not best:
            raise Problem(f"no package in {', '.join(suites)} ({apt_arch}) is called {pattern}: has the suite "
                          "moved on? Mend the entry in matrix.toml, or fetch the lists anew with --refresh")
        return best

    def beside(self, package, name):
        """Another package of the same suite, or None."""
        return self._packages(package.suite, package.arch).get(name)

    # -- fetching

    def fetch(self, package):
        """Download it, unless it is there and whole. The path of the .deb."""
        path = os.path.join(self.debs, f"{package.name}_{package.sha256[:16]}_{package.arch}.deb")
        if os.path.exists(path):
            if sha256_of(path) == package.sha256:
                return path
            self.log(f"{path} is corrupt: fetching it again")
            os.unlink(path)
        self.log(f"fetching {package.name} {package.version} ({package.arch}, {package.suite})")
        # In a directory of its own: another run may be fetching the same.
        with tempfile.TemporaryDirectory(dir=self.debs) as fresh:
            try:
                command(["apt-get", "download", "-q", package.spec], package.name, env=self.env, cwd=fresh)
            except Problem as problem:
                raise Problem(f"{problem}\n  It is not in the cache and cannot be fetched: is the network "
                              f"there, and room in {self.debs}? --refresh fetches newer lists") from None
            new = os.path.join(fresh, os.listdir(fresh)[0])
            if sha256_of(new) != package.sha256:
                raise Problem(f"{package.name}: what apt downloaded is not what the list promised")
            os.rename(new, path)
        return path

    def unpack(self, package, into):
        os.makedirs(into, exist_ok=True)
        command(["dpkg-deb", "-x", self.fetch(package), into],
                f"{package.name} cannot be unpacked into {into} (is the disk full?)")


def sha256_of(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
