# SPDX-License-Identifier: MIT
"""What those who look at manual pages need to know of mdoc: sections, names, literal blocks."""
import os
import re

ESCAPES = {r"\(aq": "'", r"\(ga": "`", r"\(ha": "^", r"\(ti": "~", r"\-": "-", r"\&": "", r"\e": "\\"}


def plain(text):
    """Text without the escapes that our pages use."""
    return re.sub(r"\\\(..|\\.", lambda m: ESCAPES[m[0]], text)


class Page:
    def __init__(self, path):
        self.path = path
        self.file = os.path.basename(path)
        self.name, _, self.number = self.file.rpartition(".")
        with open(path, encoding="utf-8") as f:
            self.text = f.read()
        self.sections = {}
        self.order = []
        for title, body in re.findall(r"^\.Sh (.*)\n((?:(?!\.Sh ).*\n)*)", self.text, re.M):
            self.sections[title] = body
            self.order.append(title)

    def names(self):
        """All that the NAME section names: the page first, then its aliases."""
        return re.findall(r"^\.Nm (\S+)", self.sections["NAME"], re.M)

    def about(self):
        return plain(re.search(r"^\.Nd (.*)$", self.sections["NAME"], re.M)[1])

    def examples(self):
        """(what the comment before it says, lines as they stand) of each literal block of EXAMPLES."""
        said, block = [], None
        for line in self.sections.get("EXAMPLES", "").splitlines():
            if block is not None:
                if line == ".Ed":
                    yield said, block
                    said, block = [], None
                else:
                    block.append(line)
            elif line.startswith(".Bd -literal"):
                block = []
            elif line.startswith('.\\" '):
                said.append(line[4:])


def pages(paths):
    return [Page(path) for path in sorted(paths)]
