#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Render manual pages as HTML, with an index. An alias is a file of its own, so that links to it work."""
import argparse
import html
import os
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import mdoc  # noqa: E402  (it must not leave a cache in the tree)

SECTIONS = {"7": "Concepts", "3": "Calls", "1": "Tools"}
ELSEWHERE = "https://man7.org/linux/man-pages/man%S/%N.%S.html"
STYLE = """body { max-width: 50em; margin: 1em auto; padding: 0 1em; font-family: sans-serif; line-height: 1.4 }
table.head, table.foot { width: 100% } td.head-vol { text-align: center } td.head-rtitle, td.foot-os { text-align: right }
pre, code { font-family: monospace } pre, div.Bd-indent, pre.Li { background: #f4f4f4; padding: 0.5em; overflow-x: auto }
.Nd, .Bf, .Op { display: inline } dl.Bl-tag > dd { margin-left: 2em } a.permalink { color: inherit; text-decoration: none }
"""

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("mandoc")
parser.add_argument("out", help="the directory, made if need be")
parser.add_argument("page", nargs="+")
args = parser.parse_args()

pages = mdoc.pages(os.path.abspath(path) for path in args.page)
os.makedirs(args.out, exist_ok=True)
os.chdir(args.out)
with open("style.css", "w", encoding="utf-8") as f:
    f.write(STYLE)
outputs = {f"{name}.{page.number}": page for page in pages for name in page.names()}
# mandoc links to the first place if there is a page of that name where it runs, and else to the second.
with tempfile.TemporaryDirectory() as here:
    for name in outputs:
        open(os.path.join(here, name), "w", encoding="utf-8").close()
    for name, page in outputs.items():
        with open(name + ".html", "wb") as f:
            subprocess.run(
                [args.mandoc, "-T", "html", "-O", f"style=style.css,man=%N.%S.html;{ELSEWHERE}", page.path],
                check=True, stdout=f, cwd=here)

with open("index.html", "w", encoding="utf-8") as f:
    f.write('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>libuffd</title>\n'
            '<link rel="stylesheet" href="style.css"></head><body><h1>libuffd</h1>\n')
    for number, title in SECTIONS.items():
        f.write(f"<h2>{title}</h2>\n<ul>\n")
        for page in (p for p in pages if p.number == number):
            links = ", ".join(f'<a href="{name}.{number}.html">{name}({number})</a>' for name in page.names())
            f.write(f"<li>{links}: {html.escape(page.about())}</li>\n")
        f.write("</ul>\n")
    f.write("</body></html>\n")
print(f"{len(outputs)} pages: {os.path.join(os.getcwd(), 'index.html')}")
