#!/usr/bin/env python3
"""Writes src/text/html_entities.inc: the named character references of HTML 5.

Source: html.entities.html5 of Python's standard library, which is the WHATWG list. One row per
name, sorted by name, without '&' and ';':

    {"name", {first, second, third code point}, flags}

kBare:  also recognised without a semicolon (the 106 names that HTML inherited).
kFolded: not an HTML name but the capitals of one, where the capitals of the value are more letters
        than the value; html_entities.cc derives all other such names.

Usage: tools/make_html_entities.py > src/text/html_entities.inc
"""

import html
import html.entities


def main():
    rows = {}
    for name, value in html.entities.html5.items():
        if not name.endswith(";"):
            continue
        bare = name[:-1] in html.entities.html5
        rows[name[:-1]] = (value, "kBare" if bare else "0")
        upper = name.upper()
        if name == name.lower() and html.unescape("&" + upper) == "&" + upper:
            if len(value.upper()) != len(value):
                rows[upper[:-1]] = (value.upper(), "kFolded")
    print("// Made by tools/make_html_entities.py; do not edit.")
    line = ""
    for name in sorted(rows):
        value, flags = rows[name]
        points = ", ".join("0x%x" % ord(c) for c in value)
        row = '{"%s", {%s}, %s},' % (name, points, flags)
        if len(line) + 1 + len(row) > 100:
            print(line)
            line = row
        else:
            line = line + " " + row if line else row
    print(line)


if __name__ == "__main__":
    main()
