#!/usr/bin/env python3
"""Runs every `ultraflash` command that README.md and docs/*.md show.

A command is a line of a fence marked ```sh that begins with `ultraflash ` or
`build/<preset>/bin/ultraflash `, with its continuation lines (a backslash at the end). The commands
of one document run in order in one temporary folder, in which `tests/golden` is the repository's, so
a later command may use what an earlier one wrote. A fence marked `sh no-run` is left out. A fence
with a file name in its mark (```json settings.json) is written to that file first.

Exit status: 0 all ran, 1 a command failed or none was found, 77 this build cannot run them.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FENCE = re.compile(r"^\s*(`{3,})\s*(.*?)\s*$")
COMMAND = re.compile(r"^(?:\./)?(?:build/\S+/)?ultraflash(?=\s)")
FILE_NAME = re.compile(r"^\w[\w.-]*\.\w+$")
SECONDS_A_COMMAND = 300


def fences(text):
    """(mark, line number, lines) of every fenced block."""
    mark, ticks, begin, lines = None, "", 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if mark is None and match:
            ticks, mark, begin, lines = match[1], match[2], number, []
        elif mark is not None and match and match[1] == ticks and not match[2]:
            yield mark, begin, lines
            mark = None
        elif mark is not None:
            lines.append(line)
    if mark is not None:
        raise ValueError(f"the fence of line {begin} has no end")


def commands(begin, lines):
    """(line number, command) of the commands among the lines of a fence."""
    index = 0
    while index < len(lines):
        first = index
        command = lines[index].strip()
        while command.endswith("\\") and index + 1 < len(lines):
            index += 1
            command = command[:-1].rstrip() + " " + lines[index].strip()
        index += 1
        if COMMAND.match(command):
            yield begin + 1 + first, COMMAND.sub("ultraflash", command)


def run_document(path, name, program, source):
    """Number of commands run, and the sentences about those that failed."""
    count, failures = 0, []
    with tempfile.TemporaryDirectory(prefix="uf_docs_") as folder:
        work = pathlib.Path(folder, "work")
        programs = pathlib.Path(folder, "bin")
        (work / "tests").mkdir(parents=True)
        programs.mkdir()
        (work / "tests/golden").symlink_to(source / "tests/golden")
        (programs / "ultraflash").symlink_to(program)
        environment = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}")
        for mark, begin, lines in fences(path.read_text(encoding="utf-8")):
            words = mark.split()
            if len(words) == 2 and FILE_NAME.match(words[1]):
                (work / words[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
            if words != ["sh"]:
                continue
            for number, command in commands(begin, lines):
                count += 1
                try:
                    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=work,
                                          env=environment, stdin=subprocess.DEVNULL, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                          errors="replace", timeout=SECONDS_A_COMMAND, check=False)
                    status, output = done.returncode, done.stdout
                except subprocess.TimeoutExpired:
                    status, output = "none", f"it did not end within {SECONDS_A_COMMAND} s\n"
                print(f"{name}:{number}: {command}: exit status {status}", flush=True)
                if status != 0:
                    failures.append(f"{name}:{number}: {command}: {output[-2000:]}")
    return count, failures


def self_test():
    """The reader of documents, on a document with every case."""
    text = "\n".join([
        "```sh", "ultraflash list", "./demo.sh", "build/cpu/bin/ultraflash generate \\",
        "  -p 'a b' | head", "ultraflashing no", "```", "```sh no-run", "ultraflash no", "```",
        "```text", "ultraflash no", "```", "````md", "```sh", "ultraflash no", "```", "````",
    ])
    found = [command for mark, begin, lines in fences(text) if mark == "sh"
             for command in commands(begin, lines)]
    assert found == [(2, "ultraflash list"), (4, "ultraflash generate -p 'a b' | head")], found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    self_test()
    program = arguments.program.resolve()
    doctor = json.loads(subprocess.run([program, "doctor", "--json"], check=True,
                                       stdout=subprocess.PIPE).stdout)
    if not doctor["video_encoders"]:
        print("NOT COVERED: this build writes no MP4, which the documentation does")
        return 77
    documents = [arguments.source / "README.md", *sorted((arguments.source / "docs").glob("*.md"))]
    total, failures = 0, []
    for path in documents:
        if not path.exists():
            continue
        count, failed = run_document(path, str(path.relative_to(arguments.source)), program,
                                     arguments.source.resolve())
        total += count
        failures += failed
    if total == 0 and (arguments.source / "docs/command-line.md").exists():
        failures.append("docs/command-line.md exists, but no document shows a command")
    print(f"{total} commands, {len(failures)} failed")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
