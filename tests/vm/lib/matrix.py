# SPDX-License-Identifier: MIT
"""matrix.toml, read and checked: kernels, guests, and the words for what one can lack."""
import fnmatch
import tomllib

from packages import Problem

ARCHES = {  # of programs: the machine that runs them, what apt calls it
    "x86_64": ("x86_64", "amd64"),
    "i386": ("x86_64", "amd64"),
    "arm64": ("aarch64", "arm64"),
}

KERNEL_KEYS = {"about", "suites", "package", "release", "arch", "page_size", "must"}
GUEST_KEYS = {"about", "kernel", "arch", "memory", "cpus", "parallel", "emulated", "append", "modules", "setup", "user", "must",
              "lacks", "programs", "tools", "ignore"}


class Guest:
    """One machine to boot: a kernel, and what is particular about this run."""

    def __init__(self, name, entry, kernel_name, kernel):
        self.name = name
        self.about = entry["about"]
        self.kernel = kernel_name
        self.suites = kernel["suites"]
        self.package = kernel["package"]
        self.release = kernel["release"]
        self.page_size = kernel["page_size"]
        self.arch = entry.get("arch", kernel["arch"])
        self.machine, self.apt_arch = ARCHES[self.arch]
        self.memory = entry.get("memory", "2G")
        self.cpus = entry.get("cpus", 2)
        self.parallel = entry.get("parallel", False)
        self.emulated = entry.get("emulated", False)  # even where there is KVM
        self.append = entry.get("append", "")
        self.modules = entry.get("modules", [])
        self.setup = entry.get("setup", "")
        self.user = entry.get("user", "")
        self.programs = entry.get("programs", ["*"])
        self.tools = entry.get("tools", [])  # tests of tests/tools, in Python
        self.ignore = entry.get("ignore", [])  # lines of the kernel's log: pattern, reason
        self.must = (set(kernel["must"]) | set(entry.get("must", []))) - set(entry.get("lacks", []))


class Matrix:
    def __init__(self, path):
        try:
            with open(path, "rb") as f:
                data = tomllib.load(f)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise Problem(f"{path}: {error}") from None
        self.path = path
        self.words = data.get("words", {})
        self.features = data.get("features", [])
        self.kernels = data.get("kernel", {})
        self._check(data)
        self.guests = [Guest(name, entry, entry["kernel"], self.kernels[entry["kernel"]])
                       for name, entry in data["guest"].items()]
        self.suites = sorted({s for k in self.kernels.values() for s in k["suites"]})

    def known(self, word):
        return word in self.words or word in self.features

    def select(self, patterns):
        if not patterns:
            return self.guests
        chosen = [g for g in self.guests if any(fnmatch.fnmatch(g.name, p) for p in patterns)]
        for pattern in patterns:
            if not fnmatch.filter([g.name for g in self.guests], pattern):
                raise Problem(f"no guest is called {pattern}; --list shows them")
        return chosen

    def _check(self, data):
        def wrong(what):
            raise Problem(f"{self.path}: {what}")

        for key in set(data) - {"words", "features", "kernel", "guest"}:
            wrong(f"[{key}] means nothing")
        for name, kernel in self.kernels.items():
            for key in set(kernel) ^ KERNEL_KEYS:
                wrong(f"kernel {name}: {key} is {'unknown' if key in kernel else 'missing'}")
            if kernel["arch"] not in ARCHES:
                wrong(f"kernel {name}: {kernel['arch']} is no architecture of {', '.join(ARCHES)}")
        for name, guest in data.get("guest", {}).items():
            for key in set(guest) - GUEST_KEYS:
                wrong(f"guest {name}: {key} is unknown")
            if guest.get("kernel") not in self.kernels:
                wrong(f"guest {name}: there is no kernel {guest.get('kernel')}")
            if guest.get("tools") and guest.get("arch", self.kernels[guest["kernel"]]["arch"]) != "x86_64":
                wrong(f"guest {name}: tools run with this machine's interpreter, on x86_64")
            if "about" not in guest:
                wrong(f"guest {name}: about is missing")
        for owner in list(self.kernels.values()) + list(data.get("guest", {}).values()):
            for word in owner.get("must", []) + owner.get("lacks", []):
                if not self.known(word):
                    wrong(f"{word} is neither a feature nor a word that [words] explains")
        if not data.get("guest"):
            wrong("there is no guest")
