#!/usr/bin/env python3
"""Sums up what CTest and GoogleTest wrote while test.sh ran.

For each build folder given it reads results/ctest.xml and results/ctest.log (what ctest reported
and printed) and, for programs that are GoogleTest ones, results/gtest/<program>.xml, so that cases
are counted rather than programs. A program that failed without a failed case (a crash, a leak, the
time limit) counts as one failure. Prints every failure, every reason for which something was
skipped, the executors that were not covered, one line per build, and last

    100% tests passed, 0 tests failed out of 16        (ctest's own, of the last build that failed,
                                                        or else of the last one)
    N passed, N failed, N skipped                      (over all builds)

Usage: tools/sum_results.py [--passed N] [--failed N] FOLDER...
       (the two are added: checks that CTest knows nothing of)
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

MAX_NAMES = 3  # of skipped cases, shown per reason


def cases_of(file):
    """(name, outcome, reason) of every case in a GoogleTest result."""
    for suite in xml.etree.ElementTree.parse(file).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            name = "%s.%s" % (case.get("classname"), case.get("name"))
            skipped = case.find("skipped")
            if case.find("failure") is not None:
                yield name, "failed", ""
            elif skipped is not None:
                # "file:line", then what the test said.
                said = (skipped.text or skipped.get("message") or "").strip().split("\n")
                yield name, "skipped", " ".join(said[1:] or said).strip() or "no reason given"
            elif case.get("status") == "notrun":
                yield name, "skipped", "disabled"
            else:
                yield name, "passed", ""


def results_of(folder):
    """(name, outcome, reason) of everything that one build ran."""
    results = folder / "results"
    tests = xml.etree.ElementTree.parse(results / "ctest.xml").getroot().iter("testcase")
    for test in tests:
        name = test.get("name")
        outcome = {"run": "passed", "disabled": "skipped"}.get(test.get("status"), "failed")
        skipped = test.find("skipped")
        if skipped is not None and skipped.get("message", "").startswith("SKIP_"):
            outcome = "skipped"  # the test said so; it is not, say, a program that is missing
        gtest = results / "gtest" / (name + ".xml")
        if gtest.exists():
            cases = list(cases_of(gtest))
            for case, result, reason in cases:
                yield "%s %s" % (name, case), result, reason
            if outcome == "failed" and not any(result == "failed" for _, result, _ in cases):
                yield name, "failed", ""
        else:
            said = (test.findtext("system-out") or "").strip().split("\n")
            yield name, outcome, said[-1] if outcome == "skipped" else ""


def executors_not_covered(folder):
    """What the tests said of CPU variants that this processor lacks, and the program of devices."""
    log = (folder / "Testing" / "Temporary" / "LastTest.log").read_text(errors="replace")
    lines = set(re.findall(r"^\[  SKIPPED \] (executor .*)$", log, re.MULTILINE))
    program = folder / "bin" / "ultraflash"
    if program.exists():
        run = subprocess.run([program, "doctor", "--json"], stdout=subprocess.PIPE, check=True)
        for device in json.loads(run.stdout)["devices"]:
            if not device["usable"]:
                lines.add("executor %s: %s" % (device["name"], device["description"]))
    return sorted(lines)


def main():
    parser = argparse.ArgumentParser(description="Sums up the results of test.sh.")
    parser.add_argument("--passed", type=int, default=0)
    parser.add_argument("--failed", type=int, default=0)
    parser.add_argument("folders", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()
    total = {"passed": arguments.passed, "failed": arguments.failed, "skipped": 0}
    builds = []  # one line each
    closing = ""
    closing_failed = False
    reasons = {}  # (build, reason) -> names
    executors = {}  # line -> builds
    for folder in arguments.folders:
        count = {"passed": 0, "failed": 0, "skipped": 0}
        for name, outcome, reason in results_of(folder):
            count[outcome] += 1
            total[outcome] += 1
            if outcome == "failed":
                print("FAILED: %s: %s" % (folder.name, name))
            elif outcome == "skipped":
                reasons.setdefault((folder.name, reason), []).append(name)
        for line in executors_not_covered(folder):
            executors.setdefault(line, []).append(folder.name)
        builds.append("%s: %d passed, %d failed, %d skipped"
                      % (folder.name, count["passed"], count["failed"], count["skipped"]))
        log = (folder / "results" / "ctest.log").read_text(errors="replace")
        ends = re.findall(r"^\d+% tests passed.*$", log, re.MULTILINE)
        if ends and (count["failed"] > 0 or not closing_failed):
            closing = ends[-1]
            closing_failed = count["failed"] > 0
    for (build, reason), names in reasons.items():
        shown = ", ".join(names[:MAX_NAMES])
        more = " and %d more" % (len(names) - MAX_NAMES) if len(names) > MAX_NAMES else ""
        print("SKIPPED: %s: %s (%s%s)" % (build, reason, shown, more))
    for line, names in executors.items():
        print("NOT COVERED: %s: %s" % (", ".join(names), line))
    for line in builds:
        print(line)
    if closing:
        print(closing)
    print("%d passed, %d failed, %d skipped"
          % (total["passed"], total["failed"], total["skipped"]))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
