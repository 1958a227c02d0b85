#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the headers declare, the version script exports and the library has: one and the same.

For one library, TAP on standard output. HEADERS and PREFIXES have commas between; the latter are those of the names
that cross its files; NEEDED are libraries that it may need besides libc. A LIBRARY or ARCHIVE of which there is none is -.
"""
import argparse
import re
import subprocess
import sys

count = failed = 0


def check(name, problems):
    global count, failed
    count += 1
    print("not ok" if problems else "ok", count, "-", name)
    for problem in problems:
        print("#", problem)
    failed |= bool(problems)


def differences(a_name, a, b_name, b):
    return ([f"{s}: in {a_name}, not in {b_name}" for s in sorted(a - b)] +
            [f"{s}: in {b_name}, not in {a_name}" for s in sorted(b - a)])


def nm(*options):
    out = subprocess.run([args.nm, *options], check=True, capture_output=True, text=True).stdout
    return [line.split() for line in out.splitlines() if line]


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--nm", default="nm", help="that of the library's architecture")
for argument in ("headers", "map", "library", "archive", "soname", "prefixes"):
    parser.add_argument(argument)
parser.add_argument("needed", nargs="*")
args = parser.parse_args()

code = ""
for header in args.headers.split(","):
    with open(header, encoding="utf-8") as f:
        code += re.sub(r"/\*.*?\*/", "", f.read(), flags=re.S)
declared = set(re.findall(r"LIBUFFD_EXPORT[^;(]*?\b(libuffd_\w+)\(", code))
prototypes = set(re.findall(r"\b(libuffd_\w+)\s*\(", code))
script = open(args.map, encoding="utf-8").read()
mapped = set(re.findall(r"^\t(libuffd_\w+);", script, flags=re.M))
check("every prototype of the headers is marked for export", differences(
    "prototypes", prototypes, "exports", declared))
check("headers = version script", differences("headers", declared, "map", mapped))
nodes = re.findall(r"^(LIBUFFD_[A-Z_]*[\d.]+) \{", script, flags=re.M)
ends = re.findall(r"^\}(?: (\S+))?;", script, flags=re.M)
check("version nodes are chained, each to the one before",
      [] if ends == [""] + nodes[:-1] else [f"{nodes} end with {ends}"])


def shared():
    symbols = nm("-D", "--defined-only", args.library)
    exported = {}
    for fields in symbols:
        name, _, version = fields[-1].partition("@@")
        if fields[-2] != "A":  # the version nodes themselves
            exported[name] = version
    check("version script = nm -D", differences("map", mapped, "library", set(exported)))
    check("every symbol has a version", [s for s, v in exported.items() if not v])
    check("no writable data is exported", [f[-1] for f in symbols if f[-2] in "BDGS"])
    dynamic = subprocess.run(["readelf", "-d", args.library], check=True, capture_output=True,
                             text=True).stdout
    soname = re.search(r"SONAME.*\[(.*)\]", dynamic)
    check(f"soname is {args.soname}",
          [] if soname and soname[1] == args.soname else [str(soname and soname[1])])
    # Where the canary of the stack protector is the dynamic linker's own, that is a part of libc too.
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    check("the library needs libc" + "".join(f", {n}" for n in args.needed) + ", and nothing else",
          [n for n in sorted(needed) if not n.startswith(("libc.so", "ld-linux")) and n not in args.needed])


def static():
    # In an archive nothing is hidden: what is global must at least not get in anybody's way. (The compiler's own
    # helpers of 32-bit x86 are the same in all archives, and merged.)
    globals_ = {f[-1] for f in nm("--defined-only", "--extern-only", args.archive)
                if len(f) == 3 and not f[-1].startswith("__x86.get_pc_thunk.")}
    check("version script = public names of the static library", differences(
        "map", mapped, "archive", {g for g in globals_ if g.startswith("libuffd_")}))
    check("global names of the static library keep to our prefixes",
          sorted(g for g in globals_ if not g.startswith(tuple(args.prefixes.split(",")))))
    # Nor does anything keep one library from what is the other's own, once both are archives.
    wanted = {f[-1] for f in nm("--undefined-only", args.archive) if len(f) == 2}
    check("the static library uses nothing private of another",
          sorted(w for w in wanted - globals_ if re.match(r"(core|sys|srv)_", w)))


if args.library != "-":
    shared()
if args.archive != "-":
    static()
print(f"1..{count}")
sys.exit(failed)
