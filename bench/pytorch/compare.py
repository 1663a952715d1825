#!/usr/bin/env python3
"""Each network of the engine beside the same network in PyTorch, on the same cores.

Engine and PyTorch take turns, one process each, never both at once. The ratio is that of the
medians over the rounds, PyTorch / engine: above 1 the engine is faster. The first PyTorch process of
a case also picks the fastest of the forms it knows (memory format, kind of convolution, attention).
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BF16, F32 = "bf16", "f32"

# Freed memory stays with the process: without these PyTorch pays for fresh pages at every large
# tensor (the engine keeps its own memory).
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}


def run_json(command, timeout, memory_gib, extra=None):
    """Last line of the command's output as JSON, or {"error": why}."""
    limit = int(memory_gib * 2**30)
    guard = lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                              env={**os.environ, **(extra or {})}, preexec_fn=guard, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"error": f"exit status {done.returncode}: {lines[-1][:300]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    keys = ("model name", "cpu family", "model", "cpu MHz")
    return {key: fields[key] for key in keys if key in fields}


def spread(values):
    return (max(values) - min(values)) / statistics.median(values)


def compare(case, dtype, options):
    common = ["--cases", str(options.cases), "--case", case, "--dtype", dtype,
              "--threads", str(options.threads), "--seconds", str(options.seconds)]
    engine = [str(options.engine), *common]
    pytorch = [options.python, str(HERE / "run_case.py"), *common]
    first = ["--form", "all"] + (["--compile"] if options.compile else [])
    row = {"name": case, "dtype": dtype, "engine": [], "pytorch": []}
    form = first
    for _ in range(options.rounds):
        for side, command, extra in (("engine", engine, None), ("pytorch", pytorch + form, MALLOC)):
            result = run_json(command, options.timeout, options.memory, extra)
            row[side].append(result)
            if "error" in result:
                row["error"] = f"{side}: {result['error']}"
                return row
        form = ["--form", row["pytorch"][0]["form"]]
    for side in ("engine", "pytorch"):
        times = [r["median_ms"] for r in row[side]]
        row[f"{side}_ms"] = statistics.median(times)
        row[f"{side}_spread"] = spread(times)
        if all("min_cpu_ms" in r for r in row[side]):
            row[f"{side}_cpu_ms"] = min(r["min_cpu_ms"] for r in row[side])
    row["ratio"] = row["pytorch_ms"] / row["engine_ms"]
    if "engine_cpu_ms" in row and "pytorch_cpu_ms" in row:
        row["cpu_ratio"] = row["pytorch_cpu_ms"] / row["engine_cpu_ms"]
    return row


def line(row):
    head = f"{row['name']:22} {row['dtype']:5}"
    if "error" in row:
        return f"{head} {row['error']}"
    cpu = f"{row['cpu_ratio']:8.2f}" if "cpu_ratio" in row else " " * 8
    return (f"{head} {row['engine_ms']:10.2f} {row['pytorch_ms']:10.2f} {row['ratio']:7.2f} {cpu}"
            f" {row['engine_spread']:6.0%} {row['pytorch_spread']:6.0%}"
            f"  {row['pytorch'][0]['form']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, type=pathlib.Path, help="bench_networks")
    parser.add_argument("--cases", type=pathlib.Path, default=HERE.parent / "network_cases.json")
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--dtype", choices=(F32, BF16, "both"), default="both")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a measurement")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds per process")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB per process")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--compile", action="store_true", help="let PyTorch try torch.compile too")
    parser.add_argument("--out", type=pathlib.Path, help="file for the results as JSON")
    options = parser.parse_args()
    names = [case["name"] for case in json.loads(options.cases.read_text())]
    wanted = [name for name in options.only.split(",") if name] or names
    if missing := set(wanted) - set(names):
        parser.error(f"{options.cases} has no case {', '.join(sorted(missing))}")
    dtypes = (F32, BF16) if options.dtype == "both" else (options.dtype,)

    print(f"{'case':22} {'dtype':5} {'engine ms':>10} {'PyTorch ms':>10} {'ratio':>7} {'cpu':>8}"
          f" {'spread of each':>13}  PyTorch form", flush=True)
    report = {
        "command": sys.argv,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": options.threads,
        "kernel": platform.release(),
        "load_average_before": os.getloadavg(),
        "pytorch_environment": MALLOC,
        "cases": [],
    }
    for name in wanted:
        for dtype in dtypes:
            row = compare(name, dtype, options)
            report["cases"].append(row)
            print(line(row), flush=True)
            for side in ("engine", "pytorch"):
                if row[side] and "version" in row[side][0]:
                    keys = ("version", "commit", "device")
                    report[side] = {k: row[side][0][k] for k in keys if k in row[side][0]}
            if options.out:
                options.out.write_text(json.dumps(report, indent=1) + "\n")
    bad = [r for r in report["cases"] if "error" in r]
    slower = [f"{r['name']} {r['dtype']}" for r in report["cases"] if r.get("ratio", 1) < 1]
    print(f"engine slower: {', '.join(slower) or 'none'}; failed: {len(bad)}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
