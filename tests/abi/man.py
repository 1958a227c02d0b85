#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The manual: what is installed, what mandoc and groff say of it, and whether it says what the headers say.

Examples are the matter of examples.py. TAP on standard output.
"""
import argparse
import glob
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "man"))
import mdoc  # noqa: E402
from stage import Stage, Tap  # noqa: E402

# What a page about calls has; a page that lacks one forgets something of somebody's.
SECTIONS = ["NAME", "LIBRARY", "SYNOPSIS", "DESCRIPTION", "OWNERSHIP", "THREADS AND SIGNALS",
            "KERNEL VERSIONS", "RETURN VALUES", "EXAMPLES", "ERRORS", "SEE ALSO"]
# Every call that has a descriptor says this of one that was closed, or replaced: the header's first rules do.
OF_CLOSED = {"EBADF", "ENOTTY"}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for argument in ("source", "build", "meson", "mandoc", "groff"):
    parser.add_argument(argument)
args = parser.parse_args()
tap = Tap()


def read(path):
    with open(os.path.join(args.source, path), encoding="utf-8") as f:
        return f.read()


def run(*argv, **options):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          **options)


pages = mdoc.pages(glob.glob(os.path.join(args.source, "man", "*.[0-9]")))
names = {(name, page.number): page for page in pages for name in page.names()}
headers = {os.path.basename(path): read(path) for path in sorted(
    glob.glob("include/uffd/*.h", root_dir=args.source), key=lambda path: (not path.endswith("/uffd.h"), path))}
version_h = read("include/uffd/version.h.in")
exported = {symbol: header for header, text in headers.items()
            for symbol in re.findall(r"LIBUFFD_EXPORT[^;(]*?\b(libuffd_\w+)\s*\(", text)}


# ---- What the tools say ---------------------------------------------------------------------------------

def tool(name, path, *options):
    if not path:
        tap.skip(f"{name} has nothing to say", f"{name} is not installed")
        return
    tap.case(f"{name} has nothing to say", [out for out in (
        run(path, *options, page.path).stdout for page in pages) if out])


tool("mandoc -T lint", args.mandoc, "-T", "lint", "-W", "warning")
tool("groff -ww", args.groff, "-mandoc", "-ww", "-z", "-Tutf8")
tap.case("a page's title is its file's name",
         [page.file for page in pages
          if not re.search(rf"^\.Dt {page.name.upper()} {page.number}$", page.text, re.M) or
          page.names()[0] != page.name])


# "No" and the like at the beginning of a heading are macros, and vanish without a word.
tap.case("no word of a heading is a macro", [
    f"{page.file}: {line}" for page in pages
    for line in re.findall(r"^\.(?:Ss|Sh|Nd) .*$", page.text, re.M) if re.search(r"\b[A-Z][a-z]\b", line[3:])])


# ---- What is installed -----------------------------------------------------------------------------------

def installed(stage):
    """Every page and alias, and nothing else; an alias leads to its page."""
    root = stage.mandir()
    if root is None:
        return ["no manual is installed"]
    wanted = {f"man{number}/{name}.{number}": page for (name, number), page in names.items()
              if page.number != "1" or stage.has_tool(page.name)}
    there = {os.path.relpath(path, root) for path in glob.glob(os.path.join(root, "man*", "*"))}
    problems = [f"{path}: installed, and no page's name" for path in sorted(there - set(wanted))]
    for path, page in sorted(wanted.items()):
        if path not in there:
            problems.append(f"{path}: not installed (man/meson.build)")
            continue
        with open(os.path.join(root, path), encoding="utf-8") as f:
            text = f.read()
        target = f"man{page.number}/{page.file}"
        if text != (page.text if path == target else f".so {target}\n"):
            problems.append(f"{path}: neither the page nor a way to it")
    return problems


with Stage(args.meson, args.build) as stage:
    tap.case("every page is installed, and an alias for each of its names", installed(stage))


# ---- What the headers say ---------------------------------------------------------------------------------

def prototypes(text):
    """name: the prototype, with single spaces."""
    code = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    found = re.findall(r"LIBUFFD_EXPORT\s+([^;]*?\b(libuffd_\w+)\s*\(.*?\));", code, re.S)
    return {name: tidy(prototype) for prototype, name in found}


def tidy(c):
    c = re.sub(r"\s+", " ", c).strip()
    return re.sub(r" ?([(),]) ?", r"\1", re.sub(r"\* ", "*", c))


def synopsis(page):
    """The same of a page, from Ft, Fn, Fo, Fa and Fc."""
    found, kind, open_ = {}, "", None
    for line in page.sections.get("SYNOPSIS", "").splitlines():
        macro, _, rest = line[1:].partition(" ")
        words = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', rest)]
        if macro == "Ft":
            kind = " ".join(words)
        elif macro == "Fo":
            open_ = [words[0]]
        elif macro == "Fa":
            open_ += words
        elif macro == "Fn":
            found[words[0]] = tidy(f"{kind} {words[0]}({','.join(words[1:])})")
        elif macro == "Fc":
            found[open_[0]] = tidy(f"{kind} {open_[0]}({','.join(open_[1:])})")
    return found


calls = [page for page in pages if page.number == "3"]
tap.case("every exported symbol has a page", [s for s in sorted(exported) if (s, "3") not in names])
tap.case("every name of a page is an exported symbol", [
    f"{page.file}: {name}" for page in calls for name in page.names() if name not in exported])
declared = {}
for header in headers.values():
    declared.update(prototypes(header))
problems = []
for page in calls:
    told = synopsis(page)
    problems += [f"{page.file}: {name} is not in its synopsis" for name in page.names() if name not in told]
    problems += [f"{page.file}: {prototype}\n   header: {declared.get(name)}"
                 for name, prototype in told.items() if prototype != declared.get(name)]
    problems += [f"{page.file}: wants #include <uffd/{exported[name]}>" for name in told
                 if name in exported and f".In uffd/{exported[name]}\n" not in page.sections["SYNOPSIS"]]
tap.case("a synopsis is what the header declares", problems)
tap.case("a page about calls has all sections, with something in them", [
    f"{page.file}: {section}" for page in calls for section in SECTIONS
    if not re.search(r"^[^.\s]|^\.(?!\\\")\w+ \S", page.sections.get(section, ""), re.M)])


def parameters(page):
    """name: the struct that it points to, or None. Of all its calls."""
    return {re.search(r"(\w+)\W*$", word)[1]: (re.search(r"struct (\w+)", word) or [None] * 2)[1]
            for prototype in synopsis(page).values()
            for word in re.match(r"[^(]*\((.*)\)", prototype)[1].split(",") if word not in ("", "void")}


def told(page, *sections):
    return "\n".join(page.sections.get(section, "") for section in sections)


# What a call is about needs no words of its own.
SUBJECTS = {"u", "s", "w", "ws", "snap", "src", "scanner"}


def lacking(page):
    """What the sections have to say, besides being there."""
    about = told(page, "DESCRIPTION", "OWNERSHIP", "RETURN VALUES")
    words = parameters(page)
    for name in sorted(words.keys() - SUBJECTS):
        if not re.search(rf"\bFa (?:\S+ , )?{name}\b|^\.Vt struct {words[name]}\b", about, re.M):
            yield f"nothing is said of {name}"
    # A number without its unit is no use; an address and a length are counted in something.
    if words.keys() & {"len", "cap", "offset"} and not re.search(r"\b(bytes?|pages?|ranges|events)\b", about):
        yield "a length has no unit"
    if any("timeout" in name for name in words) and not re.search(r"\bnanoseconds?\b", about):
        yield "a time has no unit"
    if not re.search(r"\b\d+\.\d+\b|[Aa]ny\b|[Ee]very kernel|None of them|See$|Those of", told(page, "KERNEL VERSIONS"), re.M):
        yield "no kernel is named"
    for word in ("thread", "signal"):
        if word not in told(page, "THREADS AND SIGNALS"):
            yield f"THREADS AND SIGNALS is silent on every {word}"
    for error in re.findall(r"^\.It (?:Bq Er )?(.*)\n(?=\.It|\.El)", told(page, "ERRORS"), re.M):
        yield f"{error}: no cause is given"


tap.case("it tells of each parameter, of units, kernels, threads and signals, and what causes each error", [
    f"{page.file}: {problem}" for page in calls for problem in lacking(page)])
shown = "\n".join(line for page in pages for _, block in page.examples() for line in map(mdoc.plain, block))
tap.case("every call is used in an example of the manual", [
    name for page in calls for name in page.names() if not re.search(rf"\b{name}\b", shown)])


def contracts(text):
    """name: the errors in the comment before its declaration, and in the one that its group shares."""
    found, shared, told = {}, set(), set()
    for comment, title, name in re.findall(
            r"/\*(.*?)\*/|LIBUFFD_EXPORT[^;(]*?\b()(libuffd_\w+)\s*\(", text, re.S):
        if name:
            found[name] = told | shared
            continue
        if re.match(r" ---- ", comment):
            shared = set()
        told = set(re.findall(r"-(E[A-Z0-9]+)\b", comment))
        if "Errors that they share" in comment:
            shared, told = told, set()
        # A line that names errors and says "as" says what they mean, and no more of them.
        for line in comment.splitlines():
            if re.search(r"\b[Aa]s (for )?libuffd_\w+\(\)", line) and not re.search(r"-E[A-Z]", line):
                told |= {f"as {other}" for other in re.findall(r"libuffd_\w+(?=\(\))", line)}
    return found


def settle(errors, table, seen=()):
    """With what "as libuffd_x()" stands for."""
    out = set()
    for error in errors:
        other = error[3:] if error.startswith("as ") else None
        if other is None:
            out.add(error)
        elif other not in seen:
            out |= settle(table.get(other, set()), table, (*seen, other))
    return out


table = {}
for header in headers.values():
    table.update(contracts(header))
problems = []
for page in calls:
    promised = set().union(*(settle(table.get(name, set()), table) for name in page.names()))
    told = set(re.findall(r"\bE[A-Z0-9]{2,}\b", " ".join(re.findall(
        r"^\.(?:It Bq )?Er (.*)$", page.sections.get("ERRORS", ""), re.M))))
    problems += [f"{page.file}: {error} stands in the header alone" for error in sorted(promised - told)]
    problems += [f"{page.file}: {error} stands in the page alone"
                 for error in sorted(told - promised - OF_CLOSED)]
tap.case("the errors of a page are those of the header", problems)

text = re.sub(r"^\.Dt .*$", "", "".join(page.text for page in pages), flags=re.M)
macros = set()
for header in (*headers.values(), version_h):
    macros |= set(re.findall(r"^\s*#\s*define (LIBUFFD_\w+)", header, re.M))
macros = {m for m in macros if m != "LIBUFFD_EXPORT" and not m.endswith("_H")}
used = set(re.findall(r"\bLIBUFFD_\w+\b(?!\*)", text)) - {"LIBUFFD_"}
tap.case("every constant of the headers stands in a page", sorted(macros - used))
tap.case("every constant of a page stands in a header", sorted(
    u for u in used - macros if not (u.endswith("_") and any(m.startswith(u) for m in macros))))
fields = set()
for header in headers.values():
    code = re.sub(r"/\*.*?\*/", " ", header, flags=re.S)
    for body in re.findall(r"^struct libuffd_\w+ \{(.*?)^\};", code, re.S | re.M):
        body = re.sub(r"\(\*(\w+)\)\(.*?\)", r" \1", body, flags=re.S)
        for member in re.findall(r"[^;{}]+;", body):
            for one in member.rstrip(";").split(","):
                word = re.search(r"(\w+)\s*(?:\[\w+\])?\s*$", one)
                if word:
                    fields.add(word[1])
fields = {f for f in fields if not re.search(r"^reserved|_space$|^space_opts$", f)}
tap.case("every field of a struct stands in a page",
         sorted(f for f in fields if not re.search(rf"^\.(Fa|It Fa|Pf \* Fa).*\b{f}\b", text, re.M)))


def versions(text, row):
    return dict(re.findall(row, text, re.M))


kernels = versions(names[("libuffd-kernels", "7")].text, r"^\.It Dv (LIBUFFD_FEATURE_\w+) Ta ([\d.]+) ")
header = versions(headers["uffd.h"], r"^#define (LIBUFFD_FEATURE_\w+) .*/\* ([\d.]+)")
info = versions(read("tools/uffd-info.c"), r'^\t\{ (LIBUFFD_FEATURE_\w+),\s*"([\d.]+)"')
info["LIBUFFD_FEATURE_PAGEFAULT_FLAG_WP"] = re.search(r'#else\n#define WP_SINCE "([\d.]+)"',
                                                      read("tools/uffd-info.c"))[1]
tap.case("libuffd-kernels(7), the header and uffd-info name the same kernels", [
    f"{f}: {kernels.get(f)}, {header.get(f)}, {info.get(f)}" for f in sorted({*kernels, *header, *info})
    if not kernels.get(f) == header.get(f) == info.get(f)])


# ---- Options of the tools -------------------------------------------------------------------------------------

def options_of(text):
    """Of what a program prints. In a word a hyphen is none."""
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text))


def options_in(text, lines):
    """After Fl, up to the next macro, in lines that begin so. `Fl -json` is --json."""
    return {"-" + word for line in re.findall(rf"^\.({lines}.*)$", text, re.M)
            for run in re.findall(r"\bFl ((?:(?!Fl\b|[A-Z]\w\b).)+)", line)
            for word in run.split() if re.fullmatch(r"-?[a-zA-Z][\w-]*", word)}


def taken(name):
    """What getopt_long(3) is told to take: the names in the tables, and the letters that have one."""
    sources = glob.glob(os.path.join(args.source, "tools", name + ".c")) or \
        glob.glob(os.path.join(args.source, "tools", name.removeprefix("uffd-"), "*.c"))
    table = [row for path in sources for row in re.findall(
        r'\{ "([\w-]+)", (?:no|required)_argument, NULL, (\'\w\'|\w+) \}', read(path))]
    return {"--" + word for word, _ in table} | {"-" + value[1] for _, value in table if value[0] == "'"}


def differences(name, stage):
    told = stage.run([name, "--help"])
    helped, known = options_of(told.stdout), taken(name)
    page = names[(name, "1")]
    documented = options_in(page.text, "It Fl")
    synopsis = options_in(page.sections["SYNOPSIS"], "")
    problems = [] if told.returncode == 0 and helped else [f"{name} --help: {told.returncode}", told.stderr]
    problems += [] if known else [f"{name}: its table of options is not found"]
    for what, some, others in (("--help has it, and no paragraph of the page", helped, documented),
                               ("the page has it, and not --help", documented, helped),
                               ("the program takes it, and --help does not say so", known, helped),
                               ("--help has it, and the program does not take it", helped, known),
                               ("the synopsis has it, and no paragraph of the page", synopsis, documented)):
        problems += [f"{name}: {option}: {what}" for option in sorted(some - others)]
    return problems


with Stage(args.meson, args.build) as stage:
    for page in pages:
        if page.number != "1":
            continue
        case = f"{page.file}, --help and the program have the same options"
        if stage.has_tool(page.name):
            tap.case(case, differences(page.name, stage))
        else:
            tap.skip(case, f"{page.name} is not built: it needs json-c")


# ---- Ways from page to page ---------------------------------------------------------------------------------

def ours(name):
    return name.startswith(("libuffd", "uffd-"))


tap.case("a reference to a page of ours leads there", sorted({
    f"{page.file}: {name}({number})" for page in pages
    for name, number in re.findall(r"^\.(?:Pf \S+ |Po |It )?Xr (\S+) (\d)", page.text, re.M)
    if ours(name) and (name, number) not in names}))


def links(directory):
    problems = []
    for path in glob.glob(os.path.join(directory, "*.html")):
        with open(path, encoding="utf-8") as f:
            for target in re.findall(r'href="([^"#]+)', f.read()):
                if "//" not in target and not os.path.exists(os.path.join(directory, target)):
                    problems.append(f"{os.path.basename(path)}: {target}")
                elif "//" in target and ours(target.rpartition("/")[2]):
                    problems.append(f"{os.path.basename(path)}: {target}")
    there = {os.path.basename(p) for p in glob.glob(os.path.join(directory, "*.html"))
             if os.path.getsize(p)}
    return sorted(problems) + [f"{name}.{number}.html is not there" for name, number in names
                               if f"{name}.{number}.html" not in there]


if args.mandoc:
    with Stage(args.meson, args.build) as stage:
        result = run(os.path.join(args.source, "man", "render.py"), args.mandoc, stage.work,
                     *(page.path for page in pages))
        tap.case("rendered as HTML, every page is there and every link leads to one",
                 [result.stdout] if result.returncode else links(stage.work))
else:
    tap.skip("rendered as HTML, every page is there and every link leads to one", "mandoc is not installed")
tap.finish()
