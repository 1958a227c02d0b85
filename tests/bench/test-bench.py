# SPDX-License-Identifier: MIT
"""
The benchmarks measure, and what they write can be read. No time and no ratio is judged here.
Arguments: core-bench, server-bench, and serve-bench if there is a uffd-serve, which UFFD_SERVE names.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tools"))

import common
from common import Skip, check, equal, read, run

CORE, SERVER, *SERVE = [os.path.abspath(a) for a in sys.argv[1:]]
SVG = "{http://www.w3.org/2000/svg}"
# The parts that take the least time also when others keep the CPUs busy; there are notes, and rows without a bar.
PARTS = "1,6"
MEMORY = "/dev/shm"
# Each has its own, of two minutes for each run of a comparison, and says in which it hangs.
PATIENCE = 1500

scratch = tempfile.mkdtemp(prefix="libuffd-test-")


def memory_has_room():
    """For a file of 128 MiB: it takes less time than on a disk."""
    room = os.statvfs(MEMORY) if os.path.isdir(MEMORY) else None
    return room is not None and room.f_bavail * room.f_frsize > 256 << 20


def measure(program, *args):
    """Run a benchmark to its end: the table, and the JSON."""
    path = os.path.join(scratch, "json")
    result = run([program, "--quick", *args, "--json", path], timeout=PATIENCE)
    if result.returncode == 1 and "libuffd_open" in result.stderr:
        raise Skip("no userfaultfd to be had: " + " ".join(result.stderr.split()))
    equal(result.returncode, 0, result.stderr)
    return result.stdout, json.loads(read(path))


def consistent(text, told, ours):
    """Every row is in the table too, has numbers that fit together, and is right about its bar."""
    check(told["rows"], told)
    bars = [row for row in told["rows"] if "met" in row]
    for row in told["rows"]:
        check(re.search("^  " + re.escape(row["name"]) + " ", text, re.MULTILINE), row, text)
        if "not_measured" in row:
            check(row["not_measured"] and "ratio" not in row, row)
            continue
        check(row["base"] > 0 and row[ours] > 0, row)
        check(0 < row["least"] <= row["ratio"] <= row["most"], row)
        equal("at_most" in row or "at_least" in row, "met" in row, row)
    for row in bars:
        # Both are rounded for the JSON, so what is at the bar itself may be either.
        bar = row["at_most"] if "at_most" in row else row["at_least"]
        if abs(row["ratio"] - bar) > 0.0002:
            equal(row["met"], row["ratio"] < bar if "at_most" in row else row["ratio"] > bar, row)
    check("\n%d of %d bars met\n" % (sum(row["met"] for row in bars), len(bars)) in text, text)


def drawn(svg, told):
    """The picture has every row, in the colour that its bar gives it."""
    picture = ElementTree.parse(svg).getroot()
    equal(picture.tag, SVG + "svg")
    words = [text.text for text in picture.iter(SVG + "text")]
    for row in told["rows"]:
        check(row["name"] in words and row["section"] in words, row, words)
    # The ground, and one of each row: green or red for those with bars, grey for the others.
    colours = [rect.get("fill") for rect in picture.iter(SVG + "rect")][1:]
    measured = [row for row in told["rows"] if "ratio" in row]
    equal(len(colours), len(measured))
    for row, colour in zip(measured, colours):
        wanted = {True: "#3a8f5c", False: "#c0504d", None: "#b0b0b0"}[row.get("met")]
        equal(colour, wanted, row)
    bottom = int(picture.get("height"))
    check(all(0 < int(text.get("y")) < bottom for text in picture.iter(SVG + "text")), bottom)


def core_bench_measures():
    consistent(*measure(CORE, "--only", "calls"), "libuffd")


def server_bench_measures_and_draws():
    svg = os.path.join(scratch, "svg")
    there = ["--dir", MEMORY] if memory_has_room() else []
    text, told = measure(SERVER, "--part", PARTS, "--svg", svg, *there)
    consistent(text, told, "server")
    equal({row["section"][:2] for row in told["rows"]}, {"1.", "6."})
    check(all(row["rounds"] > 0 for row in told["rows"]), told)
    equal((told["quick"], told["engine_asked_for"]), (True, "auto"))
    check(told["engine"] in ("uring", "poll"), told)
    check("engine %s (asked for: auto), quick\n" % told["engine"] in text, text)
    equal([note["part"] for note in told["notes"]], [6])
    check(all("  part %d: %s\n" % (note["part"], note["text"]) in text for note in told["notes"]), text)
    drawn(svg, told)


def server_bench_tells_the_engine_that_was_asked_for():
    text, told = measure(SERVER, "--part", "1", "--engine", "poll")
    equal((told["engine"], told["engine_asked_for"], told["notes"]), ("poll", "poll", []))
    check("engine poll (asked for: poll)" in text, text)


def what_cannot_be_measured_is_told():
    """A file in memory does not leave the page cache, so that nothing is cold."""
    if run(["stat", "-f", "-c", "%T", MEMORY]).stdout.strip() != "tmpfs":
        raise Skip(MEMORY + " is no tmpfs")
    if not memory_has_room():
        raise Skip(MEMORY + " has no room for a file of 128 MiB")
    svg = os.path.join(scratch, "svg-of-nothing")
    text, told = measure(SERVER, "--part", "7", "--dir", MEMORY, "--svg", svg)
    equal(["not_measured" in row for row in told["rows"]], [True])
    equal(told["engine"], "none")
    check("0 of 0 bars met" in text and "not measured: " in text, text)
    words = [text.text for text in ElementTree.parse(svg).getroot().iter(SVG + "text")]
    check("not measured: " + told["rows"][0]["not_measured"] in words, words)


def what_the_kernel_lacks_is_told():
    text, told = measure(SERVER, "--part", "13")
    consistent(text, told, "server")
    lacking = [row["not_measured"] for row in told["rows"] if "not_measured" in row]
    check(lacking == ["the kernel has no RWP (7.3)"] if lacking else len(told["rows"]) == 17, told)


def serve_bench_measures_and_draws():
    """All of it, but for the cold file, which there is not in memory, and what needs an NBD server."""
    if not SERVE:
        raise Skip("uffd-serve is not built (Debian: libjson-c-dev)")
    svg = os.path.join(scratch, "svg-of-serve")
    there = ["--dir", MEMORY] if memory_has_room() else []
    before = set(os.listdir(MEMORY)) if there else set()
    text, told = measure(SERVE[0], "--svg", svg, *there)
    consistent(text, told, "server")
    equal({row["section"][:2] for row in told["rows"]}, {"1.", "2.", "3."})
    equal([(row["section"][:2], row["at_most"]) for row in told["rows"] if "at_most" in row], [("1.", 1.1)] * 3)
    for row in told["rows"]:
        if "not_measured" not in row:
            continue
        excuse = "nbdkit is not installed|built without libnbd" if "NBD" in row["section"] else "the file system"
        check(re.search(excuse, row["not_measured"]), row)
        check(shutil.which("nbdkit") is None or "nbdkit" not in row["not_measured"], row)
    check("libuffd uffd-serve benchmark: " in text and told["engine"] in ("uring", "poll"), text)
    drawn(svg, told)
    left = set(os.listdir(MEMORY)) - before if there else set()
    check(not any(name.startswith("serve-bench-") for name in left), left)


def errors_name_the_program():
    for program, args in ((CORE, ["--only", "nothing"]), (SERVER, ["--part", "99"]),
                          (SERVER, ["--engine", "steam"]), *((p, ["--part", "4"]) for p in SERVE)):
        result = run([program, *args])
        equal((result.returncode, result.stdout), (1, ""), args)
        check(result.stderr.startswith(os.path.basename(program) + ": "), result.stderr)
    for program in (CORE, SERVER, *SERVE):
        equal(run([program, "--what"]).returncode, 2)


TESTS = [
    core_bench_measures,
    server_bench_measures_and_draws,
    server_bench_tells_the_engine_that_was_asked_for,
    what_cannot_be_measured_is_told,
    what_the_kernel_lacks_is_told,
    serve_bench_measures_and_draws,
    errors_name_the_program,
]

if __name__ == "__main__":
    try:
        status = common.main(TESTS)
    finally:
        shutil.rmtree(scratch)
    sys.exit(status)
