#!/usr/bin/env python3
"""One case of bench/network_cases.json in PyTorch, as one JSON line: counterpart of bench_networks.

`--form all` tries every form of the case and measures the fastest; its answer names the form, so
that later runs can ask for it alone.
"""
import argparse
import gc
import json
import resource
import statistics
import time

import torch

from networks import cases


def once(call):
    """Seconds of wall time and of processor time over all threads."""
    begin = time.perf_counter()
    cpu = time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - cpu


def measure(call, seconds, least=3):
    wall, cpu = [], []
    while len(wall) < least or sum(wall) < seconds:
        w, c = once(call)
        wall.append(w)
        cpu.append(c)
    return wall, cpu


def build(case, dtype, form):
    """A call in its steady state. `FORM+compile` goes through torch.compile with frozen weights."""
    name, _, compiled = form.partition("+")
    network, call = cases.BUILDERS[case["module"]][0](case, dtype, name)
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64
        call = torch.compile(call)
    return network, call


def try_forms(case, dtype, forms, with_compile):
    """The fastest form, and what became of each: a time in ms or why there is none."""
    tried = {}
    best = (float("inf"), None)

    def attempt(form):
        nonlocal best
        gc.collect()
        try:
            _, call = build(case, dtype, form)
            for _ in range(2):
                once(call)
            first, _ = once(call)
            # A form that is far behind is not run to the end.
            rest = measure(call, 0.5, 2)[0] if first < 3 * best[0] else []
            tried[form] = 1e3 * min([first, *rest])
            best = min(best, (tried[form] / 1e3, form))
        except Exception as error:  # recorded, never hidden
            if form == forms[0]:
                raise
            tried[form] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"

    for form in forms:
        attempt(form)
    if with_compile:
        attempt(best[1] + "+compile")
    return best[1], tried


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="bench/network_cases.json")
    parser.add_argument("--case", required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="least measured time")
    parser.add_argument("--form", default="all", help="all, or one that an earlier run named")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with open(options.cases) as file:
        case = next(c for c in json.load(file) if c["name"] == options.case)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    forms = cases.BUILDERS[case["module"]][1]
    form, tried = options.form, {}
    if form == "all":
        form, tried = try_forms(case, dtype, forms, options.compile)
    gc.collect()
    _, call = build(case, dtype, form)
    for _ in range(2):
        once(call)
    times, cpu_times = measure(call, options.seconds)
    print(json.dumps({
        "name": case["name"],
        "dtype": options.dtype,
        "form": form,
        "median_ms": 1e3 * statistics.median(times),
        "min_ms": 1e3 * min(times),
        "min_cpu_ms": 1e3 * min(cpu_times),
        "runs": len(times),
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "forms_ms": tried,
        "threads": torch.get_num_threads(),
        "version": torch.__version__,
    }))


if __name__ == "__main__":
    main()
