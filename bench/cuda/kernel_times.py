#!/usr/bin/env python3
"""Adds up a file of kernel_times.cc: time per kernel, and the time in which the GPU had nothing to do.

Usage: kernel_times.py FILE [--from SECONDS] [--to SECONDS] [--top N]

--from and --to cut out a part, in seconds from the first record; negative --from counts back from
the last one, so that `--from -2.5` takes the last clip of a bench.
"""

import argparse
import csv
import re


def short(name):
    name = re.sub(r"ultraflash::cuda::(kernels::)?|\(anonymous namespace\)::", "", name)
    return re.sub(r"\(.*", "", name)[:100]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--from", dest="begin", type=float, default=0.0)
    parser.add_argument("--to", dest="end", type=float, default=float("inf"))
    parser.add_argument("--top", type=int, default=40)
    arguments = parser.parse_args()
    with open(arguments.file, newline="") as file:
        rows = [(int(r[0]), int(r[1]), r[3]) for r in csv.reader(file) if len(r) == 4]
    rows.sort()
    first, last = rows[0][0], max(start + length for start, length, _ in rows)
    begin = (first if arguments.begin >= 0 else last) + arguments.begin * 1e9
    end = first + arguments.end * 1e9
    rows = [r for r in rows if begin <= r[0] <= end]
    totals = {}
    busy = 0
    reached = rows[0][0]
    for start, length, name in rows:
        entry = totals.setdefault(short(name), [0, 0, []])
        entry[0] += 1
        entry[1] += length
        entry[2].append(length)
        busy += max(0, start + length - max(start, reached))
        reached = max(reached, start + length)
    span = reached - rows[0][0]
    print(f"{len(rows)} records over {span / 1e6:.1f} ms, busy {busy / 1e6:.1f} ms "
          f"({100 * busy / span:.1f} %)")
    print(f"{'ms':>10} {'%':>5} {'calls':>7} {'median us':>10}  kernel")
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    for name, (calls, total, lengths) in ordered[: arguments.top]:
        median = sorted(lengths)[len(lengths) // 2]
        print(f"{total / 1e6:10.2f} {100 * total / busy:5.1f} {calls:7} {median / 1e3:10.1f}  {name}")


if __name__ == "__main__":
    main()
