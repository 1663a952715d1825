#!/usr/bin/env python3
"""Means of a measure in the log of a training run (log.jsonl), over equal stretches of steps.

  tools/log_means.py out/train/sr/log.jsonl loss
  tools/log_means.py out/train/sr_sparse/log.jsonl fake_loss --stretches 10

Prints each stretch (a thousand steps, or a part of the run with --stretches), how many are below the
one before, and by how many percent the last differs from the one before it.
"""

import argparse
import json
import sys


def points(lines, measure):
    """(step, value) of the lines that have the measure; of two with one step the later."""
    found = {}
    for line in lines:
        entry = json.loads(line)
        if "step" in entry and isinstance(entry.get(measure), (int, float)):
            found[entry["step"]] = entry[measure]
    return sorted(found.items())


def stretches(values, length):
    """(first step, mean) of each whole stretch of `length` steps."""
    sums = {}
    for step, value in values:
        # A line holds the mean of the steps up to its own.
        sums.setdefault(max(step - 1, 0) // length, []).append(value)
    return [(index * length, sum(part) / len(part)) for index, part in sorted(sums.items())]


def report(values, length):
    rows = stretches(values, length)
    text = [f"{first:9d} {mean:.6g}" for first, mean in rows]
    if len(rows) > 1:
        falls = sum(b[1] < a[1] for a, b in zip(rows, rows[1:]))
        change = 100.0 * (rows[-1][1] / rows[-2][1] - 1.0)
        text.append(f"falls {falls} of {len(rows) - 1} times; last change {change:+.2f} %")
    return text


def self_test():
    lines = ['{"config": {}}', '{"step": 50, "loss": 4.0}', '{"step": 100, "loss": 2.0}',
             '{"step": 150, "other": 1.0}', '{"step": 200, "loss": 1.5}',
             '{"step": 200, "loss": 1.0}', '{"step": 300, "loss": 1.1}']
    values = points(lines, "loss")
    assert values == [(50, 4.0), (100, 2.0), (200, 1.0), (300, 1.1)], values
    assert stretches(values, 100) == [(0, 3.0), (100, 1.0), (200, 1.1)]
    assert report(values, 100)[-1] == "falls 1 of 2 times; last change +10.00 %"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", nargs="?")
    parser.add_argument("measure", nargs="?")
    parser.add_argument("--steps", type=int, default=1000, help="length of a stretch")
    parser.add_argument("--stretches", type=int, help="so many parts of the run instead")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        self_test()
        return 0
    if arguments.measure is None:
        parser.error("give a log and a measure")
    with open(arguments.log, encoding="utf-8") as lines:
        values = points(lines, arguments.measure)
    if not values:
        print(f"{arguments.log}: no '{arguments.measure}' in it", file=sys.stderr)
        return 1
    length = arguments.steps
    if arguments.stretches:
        length = max(1, -(-values[-1][0] // arguments.stretches))
    print("\n".join(report(values, length)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
