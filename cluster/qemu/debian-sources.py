#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print deb-src lines for the Debian mirrors that this machine's apt uses.

Usage: debian-sources.py /etc/apt/sources.list /etc/apt/sources.list.d CODENAME

Reads both formats of apt (one-line .list and deb822 .sources), keeps what is Debian itself (suites of
CODENAME, component main, a URI that ends like a Debian archive does), and prints one-line deb-src
entries, so that a private apt can fetch a source package without changing the system's own lists.
"""

import os
import re
import sys

OPTIONS_KEPT = {"signed-by": "signed-by", "trusted": "trusted"}
ARCHIVE = re.compile(r"/debian(-security)?/?$|/archive/debian(-security)?/[0-9TZ]+/?$")


def stanzas(text):
    """The deb822 stanzas of a .sources file, as dictionaries with lower-case keys."""
    for block in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields, key = {}, None
        for line in block.splitlines():
            if line[:1].isspace() and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields:
            yield fields


def from_deb822(text):
    for fields in stanzas(text):
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        options = {k: v for k, v in fields.items() if k in OPTIONS_KEPT}
        # A key that stands in the file itself cannot be written into a one-line entry.
        if "\n" in options.get("signed-by", ""):
            del options["signed-by"]
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split(), options


def from_one_line(text):
    for line in text.splitlines():
        match = re.match(r"\s*deb(?:-src)?\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if not match:
            continue
        pairs = (word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
        options = {k.lower(): v for k, v in pairs if k.lower() in OPTIONS_KEPT}
        yield match[2], match[3], match[4].split(), options


def files(main, parts):
    yield main
    if os.path.isdir(parts):
        for name in sorted(os.listdir(parts)):
            if name.endswith((".list", ".sources")):
                yield os.path.join(parts, name)


def main(argv):
    if len(argv) != 4:
        sys.exit(__doc__)
    suites = {argv[3] + tail for tail in ("", "-updates", "-security", "/updates")}
    lines = []
    for path in files(argv[1], argv[2]):
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
        for uri, suite, components, options in (
            from_deb822(text) if path.endswith(".sources") else from_one_line(text)
        ):
            if suite not in suites or "main" not in components or not ARCHIVE.search(uri):
                continue
            shown = " ".join(f"{OPTIONS_KEPT[k]}={v}" for k, v in sorted(options.items()))
            line = f"deb-src {'[' + shown + '] ' if shown else ''}{uri} {suite} main"
            if line not in lines:
                lines.append(line)
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv)
