#!/usr/bin/env python3
"""Writes src/text/mojibake_tables.inc: the tables that src/text/mojibake.cc decides by.

kCharacterClasses: code points that occur in mojibake, with the classes they belong to. The classes
are those of ftfy 6.3.1 (Copyright 2023 Robyn Speer, Apache License 2.0), so that the engine repairs
what the reference repairs and leaves alone what it leaves alone.
kByteEncodings: what the bytes 0x80 to 0xff mean in each single-byte encoding that text is commonly
misread as, from Python's codecs. A sloppy encoding gives unassigned bytes their Latin-1 meaning,
and reads U+FFFD as a byte that was lost.

Needs ftfy 6.3.1, at the time of writing the table only.
Usage: tools/make_mojibake_tables.py > src/text/mojibake_tables.inc
"""

import re

import ftfy
from ftfy.badness import MOJIBAKE_CATEGORIES
from ftfy.chardata import CHARMAP_ENCODINGS, UTF8_CLUES

NAMES = {
    "common": "kCommon",
    "c1": "kC1",
    "bad": "kBad",
    "law": "kLaw",
    "currency": "kCurrency",
    "start_punctuation": "kStart",
    "end_punctuation": "kEnd",
    "numeric": "kNumeric",
    "kaomoji": "kKaomoji",
    "upper_accented": "kUpperAccented",
    "lower_accented": "kLowerAccented",
    "upper_common": "kUpperCommon",
    "lower_common": "kLowerCommon",
    "box": "kBox",
    "utf8_first_of_2": "kLeadOf2",
    "utf8_first_of_3": "kLeadOf3",
    "utf8_first_of_4": "kLeadOf4",
    "utf8_continuation": "kContinuation",
    "utf8_continuation_strict": "kContinuationStrict",
}


def main():
    assert ftfy.__version__ == "6.3.1", ftfy.__version__
    classes = {**MOJIBAKE_CATEGORIES, **UTF8_CLUES}
    assert set(classes) == set(NAMES)
    members = {name: re.compile("[" + spec + "]") for name, spec in classes.items()}
    rows = []
    for point in range(0x10000):
        if 0xD800 <= point < 0xE000:
            continue
        mask = tuple(NAMES[n] for n in NAMES if members[n].match(chr(point)))
        if not mask:
            continue
        if rows and rows[-1][1] == point - 1 and rows[-1][2] == mask:
            rows[-1][1] = point
        else:
            rows.append([point, point, mask])

    print("// Made by tools/make_mojibake_tables.py; do not edit.")
    print("// Character classes: ftfy 6.3.1, Copyright 2023 Robyn Speer, Apache License 2.0.")
    for bit, name in enumerate(NAMES.values()):
        print("constexpr uint32_t %s = 1U << %d;" % (name, bit))
    print("constexpr CharacterClass kCharacterClasses[] = {")
    for first, last, mask in rows:
        print("    {0x%x, 0x%x, %s}," % (first, last, " | ".join(mask)))
    print("};")
    print("constexpr ByteEncoding kByteEncodings[] = {")
    for encoding in CHARMAP_ENCODINGS:
        flags = (
            encoding.startswith("sloppy"),  # sloppy
            encoding != "macroman",  # may_have_lost_nbsp
        )
        flags = ", ".join("true" if f else "false" for f in flags)
        print('    {"%s", %s,' % (encoding.replace("sloppy-", ""), flags))
        values = ["0x%x" % ord(bytes([b]).decode(encoding)) for b in range(0x80, 0x100)]
        line = "     {"
        for i, value in enumerate(values):
            item = value + ("}}," if i == len(values) - 1 else ",")
            if len(line) + 1 + len(item) > 100:
                print(line)
                line = "      " + item
            else:
                line += item if line.endswith("{") else " " + item
        print(line)
    print("};")


if __name__ == "__main__":
    main()
