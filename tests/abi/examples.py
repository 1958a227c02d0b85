#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every example of the manual, and every C block of the README, as a stranger has it: pasted, compiled, run.

They are compiled against what this build installs, with the flags of pkg-config alone, and must end well. A
comment before a block of a page says more of it: `example: sh` is for the shell; `needs: move` names features, or
what else uffd-info --require knows, without which it cannot run; `prints: words` must stand in what it prints.
A block of the README that is no program of its own needs a readme-*.c here, which is one around it. Its commands
that build a program are run as they stand; of the others what they call must be there, and know their options.
(Its block of Meson is the matter of consumer.sh, and test-microvm.py runs the two terminals.) TAP on standard output.
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

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for argument in ("source", "build", "meson", "mandoc", "groff"):
    parser.add_argument(argument)
parser.add_argument("compiler", nargs="+")
args = parser.parse_args()
tap = Tap()

# What there is, in words: only that excuses an example from running.
PROBE = r"""
#include <stdio.h>
#include <uffd/uffd.h>

int main(void)
{
	struct libuffd_caps caps = LIBUFFD_CAPS_INIT;
	struct libuffd_scanner *scanner;

	if (libuffd_probe(&caps) < 0)
		return 1;
	for (int i = 0; i < 64; i++) {
		uint64_t bit = UINT64_C(1) << i;

		if (caps.features & ~caps.denied & bit && libuffd_feature_name(bit))
			puts(libuffd_feature_name(bit));
	}
	for (int way = 0; way < LIBUFFD_WAYS; way++)
		if (!caps.way[way].error)
			puts(way == LIBUFFD_WAY_USER_MODE ? "user-mode" : "open\nuser-mode");
	if (libuffd_scan_open(0, &scanner) == 0) {
		puts("pagemap-scan");
		libuffd_scan_close(scanner);
	}
	return 0;
}
"""


class Example:
    def __init__(self, name, code, said=()):
        self.name, self.code = name, code
        said = [line.partition(": ") for line in said]
        self.shell = ("example", ": ", "sh") in said
        self.prints = [value for key, _, value in said if key == "prints"]
        self.needs = {word for key, _, value in said if key == "needs" for word in value.split(", ")}
        for required in re.findall(r"\brequired = ([^;]*);", code):
            self.needs |= {name.lower().replace("_", "-")
                           for name in re.findall(r"LIBUFFD_FEATURE_(\w+)", required)}
        if "libuffd_open(" in code:
            self.needs |= {"user-mode"} if "USER_MODE_OK" in code else {"open"}

    def library(self):
        # Every header but the core's two is the server library's.
        return "libuffd-server" if re.search(r"#include <uffd/(?!uffd|version)", self.code) else "libuffd"


def try_it(stage, example, there):
    base = os.path.join(stage.work, re.sub(r"\W+", "-", example.name))
    program = base
    with open(base + (".sh" if example.shell else ".c"), "w", encoding="utf-8") as f:
        f.write(example.code)
    if example.shell:
        argv = ["sh", "-eu", base + ".sh"]
    else:
        wrong = stage.compile(args.compiler, base + ".c", example.library(), program)
        if wrong:
            tap.case(example.name, ["does not compile:", wrong])
            return
        argv = [program]
    lacking = sorted(example.needs - there)
    if lacking:
        tap.skip(example.name, f"needs {', '.join(lacking)}: this machine has not got that")
        return
    try:
        result = stage.run(argv)
    except subprocess.TimeoutExpired:
        tap.case(example.name, ["does not end"])
        return
    problems = [f"does not print: {words}" for words in example.prints if words not in result.stdout]
    if result.returncode or problems:
        problems += [f"exit status {result.returncode}", result.stdout, result.stderr]
    tap.case(example.name, problems)


def of_pages(pages):
    for page in pages:
        blocks = list(page.examples())
        for i, (said, lines) in enumerate(blocks, 1):
            name = page.file + (f", {i}" if len(blocks) > 1 else "")
            yield Example(name, "".join(mdoc.plain(line) + "\n" for line in lines), said)


def readme(language):
    with open(os.path.join(args.source, "README.md"), encoding="utf-8") as f:
        return re.findall(rf"^```{language}\n(.*?)^```$", f.read(), re.M | re.S)


def of_readme():
    blocks = readme("c")
    wraps = {}
    for path in glob.glob(os.path.join(args.source, "tests", "abi", "readme-*.c")):
        with open(path, encoding="utf-8") as f:
            text = f.read()
        wraps[re.search(r"/\* the block that begins: (.*) \*/", text)[1]] = text
    for i, code in enumerate(blocks, 1):
        name = f"README.md, block {i}"
        if "int main(" not in code:
            wrap = wraps.get(code.splitlines()[0])
            if wrap is None:
                tap.case(name, ["is no program, and no readme-*.c here makes one of it"])
                continue
            code = re.sub(r"^.*/\* the block that begins: .*$", lambda _, c=code: c, wrap, flags=re.M)
        yield Example(name, code)
    tap.case("the README has blocks of C", [] if blocks else ["none was found"])


def run_readme(stage, name, commands, there):
    """What builds the program above it, pasted; it is first.c there."""
    if "user-mode" not in there:
        tap.skip(name, "needs user-mode: this machine has not got that")
        return
    with open(os.path.join(stage.work, "first.c"), "w", encoding="utf-8") as f:
        f.write(readme("c")[0])
    commands = re.sub(r"^cc ", " ".join(args.compiler) + " ", commands)
    result = stage.run(["sh", "-eu", "-c", commands])
    tap.case(name, [result.stdout, result.stderr] if result.returncode or not result.stdout else None)


def unknown(stage, command):
    """What is wrong with a command that is not run: it is not there, or does not know an option."""
    words = command.split()
    options = {word for word in words[1:] if word.startswith("--")}
    place, _, program = words[0].rpartition("/")
    if words[0].startswith("build/examples/"):
        source = os.path.join(args.source, "examples", program + ".c")
        if not os.path.exists(source):
            return [f"no {source}"]
        with open(source, encoding="utf-8") as f:
            known = {"--" + word for word in re.findall(r'\{ "([\w-]+)",', f.read())}
    elif place == "scripts" or stage.has_tool(program):
        path = os.path.join(args.source, words[0]) if place == "scripts" else program
        result = stage.run([path, "--help"])
        if result.returncode:
            return [f"{words[0]} --help: {result.returncode}", result.stderr]
        known = set(re.findall(r"--[\w-]+", result.stdout))
    else:
        return [f"{words[0]}: nobody tries this"]
    return [f"{words[0]} does not know {option}" for option in sorted(options - known)]


def commands_of_readme(stage, there):
    blocks = readme("sh")
    tap.case("the README has blocks of commands", [] if blocks else ["none was found"])
    for i, block in enumerate(blocks, 1):
        name = f"README.md, commands {i}"
        if block.startswith("cc "):
            run_readme(stage, name, block, there)
            continue
        lines = [line.partition(" # ")[0] for line in block.splitlines()]
        if any("uffd-serve" in line for line in lines) and not stage.has_tool("uffd-serve"):
            tap.skip(name, "uffd-serve is not built: it needs json-c")
            continue
        tap.case(name, [problem for line in lines if line.strip() for problem in unknown(stage, line)])


def pasted(path, options, pages):
    """What people copy from the screen is the code, character for character."""
    problems = []
    for page in pages:
        shown = subprocess.run([path, *options, page.path], stdout=subprocess.PIPE, check=True).stdout.decode()
        shown = re.sub(r"\x1b\[[\d;]*m|.\x08", "", shown)
        shown = {line.strip() for line in shown.expandtabs().splitlines()}
        for _, lines in page.examples():
            problems += [f"{page.file}: {line}" for line in map(mdoc.plain, lines)
                         if line.strip() and line.expandtabs().strip() not in shown]
    return problems


def bare(pages):
    """Characters that some typesetters make prettier, and a compiler does not know then."""
    return [f"{page.file}: {line}" for page in pages for _, lines in page.examples() for line in lines
            if re.search(r"[-'`^~]", re.sub(r"\\\(..|\\.", "", line))]


pages = mdoc.pages(glob.glob(os.path.join(args.source, "man", "*.[0-9]")))
with Stage(args.meson, args.build) as stage:
    pages = [page for page in pages if page.number != "1" or stage.has_tool(page.name)]
    tap.case("every page has an example", [page.file for page in pages if not list(page.examples())])
    tap.case("in examples - ' ` ^ ~ are escaped", bare(pages))
    for tool, path, options in (("mandoc", args.mandoc, ["-T", "utf8"]),
                                ("groff", args.groff, ["-mandoc", "-Tutf8", "-P-c"])):
        name = f"{tool} shows examples as they are"
        if path:
            tap.case(name, pasted(path, options, pages))
        else:
            tap.skip(name, f"{tool} is not installed")
    probe = os.path.join(stage.work, "probe")
    with open(probe + ".c", "w", encoding="utf-8") as f:
        f.write(PROBE)
    wrong = stage.compile(args.compiler, probe + ".c", "libuffd", probe)
    result = None if wrong else stage.run([probe])
    tap.case("what this machine has is known", [wrong] if wrong else result.returncode and [result.stderr])
    there = set() if wrong else set(result.stdout.split())
    for example in (*of_pages(pages), *of_readme()):
        try_it(stage, example, there)
    commands_of_readme(stage, there)
tap.finish()
