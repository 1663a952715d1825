#!/usr/bin/env python3
"""Checks which file includes what, in src/, apps/ and include/.

The layers of docs/architecture.md, lowest first; a file includes its own layer and lower ones:

    core
    weights  text  media  ops  parallel      (none of these includes another)
    diffusion  models
    stream
    recipes  verify
    train
    apps

A public header belongs to the layer that implements what it declares. The private headers of an
executor (ops/<executor>/) are seen by that executor and by ops/devices.cc alone; those of
ops/autograd also by train, which is written for it. Third-party
headers are seen only where THIRD_PARTY says.

Prints every violation as file:line: reason and exits with 1 if there is one.

Usage: tools/check_includes.py [--root FOLDER]
       tools/check_includes.py --self-test        checks the rules on made-up lines
"""

import argparse
import pathlib
import re
import sys

LAYERS = [
    ["core"],
    ["weights", "text", "media", "ops", "parallel"],
    ["diffusion", "models"],
    ["stream"],
    ["recipes", "verify"],
    ["train"],
    ["apps"],
]
RANK = {layer: rank for rank, layers in enumerate(LAYERS) for layer in layers}

# Public header -> the lowest layer that may include it.
PUBLIC = {
    "ultraflash/engine.h": "stream",
    "ultraflash/log.h": "core",
    "ultraflash/recipe.h": "stream",
    "ultraflash/status.h": "core",
    "ultraflash/version.h": "core",
}

# Header (whole name must match) -> where it may be included (path must start so), and why not
# elsewhere. The first row that matches decides.
THIRD_PARTY = [
    (r"fmt/.*", ["src/", "apps/"], "public headers have no third-party types"),
    (r"nlohmann/.*", ["src/weights/", "src/recipes/", "src/verify/", "src/train/", "apps/"],
     "JSON stays there"),
    (r"utf8proc\.h", ["src/text/"], "Unicode tables are a matter of text"),
    (r"oneapi/.*|dnnl.*", ["src/ops/cpu/onednn.cc"], "one file knows oneDNN"),
    (r"lib(av|sw)[a-z]+/.*", ["src/media/"], "FFmpeg stays there"),
    (r"png\.h", ["src/media/"], "libpng stays there"),
    (r"(CLI|spdlog)/.*", ["apps/"], "the library does not parse commands or log by itself"),
    (r"(torch|ATen|c10)/.*", ["src/ops/autograd/", "src/train/"], "libtorch is for training"),
    (r"opencv2/.*", ["src/train/degrade/flow_module.cc"], "OpenCV stays in a module of its own"),
    (r"nccl\.h", ["src/parallel/nccl"], "one file knows NCCL"),
    (r"mpi\.h", ["src/parallel/mpi"], "one file knows MPI"),
    (
        r"(cooperative_groups|cuda|cublas|cudnn|curand|cufft|nvrtc|nvtx|driver_types|vector_types).*"
        r"|(cub|cute|cutlass|thrust|nvtx3)/.*",
        ["src/ops/cuda/", "src/parallel/nccl", "src/train/world/render.cu",
         "src/train/cuda_graph_module.cc"],
        "CUDA stays there",
    ),
    (r"omp\.h", ["src/ops/cpu/"], "loops over threads are a matter of the CPU executor"),
    (r"[a-z0-9]*intrin\.h|arm_neon\.h|cpuid\.h", ["src/ops/cpu/"], "vector code stays there"),
    (r"sanitizer/.*", ["src/core/"], "the arena tells the sanitizers what is free"),
    (r"sentencepiece_.*", [], "it is a second reader for the tests"),
]

# What the operating system offers; allowed everywhere but in public headers.
SYSTEM = re.compile(
    r"(arpa|linux|net|netinet|sys)/[a-z_]+\.h"
    r"|(dirent|dlfcn|fcntl|malloc|netdb|poll|pthread|sched|signal|spawn|termios|unistd)\.h"
)
STANDARD = re.compile(r"[a-z_0-9]+")  # <vector>; the C headers only as <cstdio>

INCLUDE = re.compile(r'\s*#\s*(?:include|include_next|import)\b\s*(.*)')
SOURCES = {".h", ".hpp", ".cc", ".cpp", ".c", ".cu", ".cuh", ".inc", ".in"}


def layer_of(path):
    """The layer of a file, or None."""
    parts = path.split("/")
    if parts[0] == "apps":
        return "apps"
    if parts[0] == "include":
        return PUBLIC.get("/".join(parts[1:]))
    return parts[1] if len(parts) > 2 and parts[1] in RANK else None


def executor_of(path):
    """'cpu' for ops/cpu/..., None for the rest of ops and for all else."""
    parts = path.split("/")
    return parts[1] if parts[0] == "ops" and len(parts) > 2 else None


def quoted_reason(path, name):
    """Why `path` must not contain #include "name", or None."""
    layer = layer_of(path)
    if ".." in name.split("/"):
        return '"%s": write the path from src/ or include/' % name
    if name.startswith("ultraflash/"):
        if name not in PUBLIC:
            return '"%s" is no public header that tools/check_includes.py knows' % name
        target = PUBLIC[name]
        if path.startswith("include/"):
            return None  # public headers may include each other
    else:
        if path.startswith("include/"):
            return '"%s": a public header includes the standard library and public headers' % name
        target = name.split("/")[0]
        if "/" not in name or target not in RANK or target == "apps":
            # A program includes the files beside it by their bare names.
            if layer == "apps" and "/" not in name:
                return None
            return '"%s": write the path from src/, beginning with the layer' % name
    executor = executor_of(name)
    # The trainer chooses its executor itself and sees libtorch's tensors.
    trains = executor == "autograd" and layer == "train"
    if executor is not None and path != "src/ops/devices.cc" and not trains:
        if not path.startswith("src/ops/%s/" % executor):
            return '"%s" is private to the executor ops/%s' % (name, executor)
    if target == layer or RANK[target] < RANK[layer]:
        return None
    if RANK[target] == RANK[layer]:
        return '"%s": %s and %s do not include one another' % (name, layer, target)
    return '"%s": %s stands above %s' % (name, target, layer)


def angle_reason(path, name):
    """Why `path` must not contain #include <name>, or None."""
    if name.startswith("ultraflash/") or name.split("/")[0] in RANK and "/" in name:
        return "<%s>: our own headers are included in quotes" % name
    if STANDARD.fullmatch(name):
        return None
    for pattern, places, why in THIRD_PARTY:
        if re.fullmatch(pattern, name):
            if any(path.startswith(place) for place in places):
                return None
            where = "only in " + " and ".join(places) if places else "nowhere here"
            return "<%s>: %s (%s)" % (name, where, why)
    if path.startswith("include/"):
        return "<%s>: a public header includes only the standard library" % name
    if SYSTEM.fullmatch(name):
        return None
    return "<%s> is a library that tools/check_includes.py does not know; say there who may" % name


def without_comments(text):
    """The text with comments blanked, lines kept. Strings are left alone."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

    def blank(match):
        found = match.group(0)
        return found if found[0] == '"' else "\n" * found.count("\n") + " "

    return pattern.sub(blank, text)


def check_text(path, text):
    """(line, reason) of every violation in a file."""
    if layer_of(path) is None:
        if path.startswith("include/"):
            yield 1, "no public header that tools/check_includes.py knows; add it to PUBLIC"
        else:
            yield 1, "stands in no layer; tools/check_includes.py knows %s" % ", ".join(RANK)
        return
    for number, line in enumerate(without_comments(text).split("\n"), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        what = re.fullmatch(r'"([^"]+)"|<([^>]+)>', match.group(1).strip())
        if not what:
            yield number, "an include that cannot be checked: %s" % match.group(1).strip()
            continue
        reason = quoted_reason(path, what[1]) if what[1] else angle_reason(path, what[2])
        if reason:
            yield number, reason


def check_tree(root):
    files = violations = 0
    for top in ("include", "src", "apps"):
        for file in sorted((root / top).rglob("*")):
            if file.suffix not in SOURCES or not file.is_file():
                continue
            files += 1
            path = file.relative_to(root).as_posix()
            for line, reason in check_text(path, file.read_text(encoding="utf-8")):
                print("%s:%d: %s" % (path, line, reason))
                violations += 1
    if files == 0:
        print("%s: no sources here" % root)
        return 1
    print("includes: %d files, %d violations" % (files, violations))
    return 1 if violations else 0


# (path, text, lines with a violation)
CASES = [
    ("src/core/a.cc", '#include "core/a.h"\n#include "ultraflash/log.h"\n#include <array>\n', []),
    ("src/core/a.cc", '#include "ops/executor.h"\n', [1]),
    ("src/core/a.cc", '#include "ultraflash/engine.h"\n', [1]),
    ("src/media/a.cc", '\n\n#include "text/utf8.h"\n', [3]),
    ("src/text/a.cc", '#include "weights/zip.h"\n', [1]),
    ("src/weights/a.cc", '#include "ops/types.h"\n', [1]),
    ("src/ops/a.cc", '#include "parallel/communicator.h"\n', [1]),
    ("src/models/a.cc", '#include "ops/executor.h"\n#include "weights/binder.h"\n', []),
    ("src/models/a.cc", '#include "stream/session.h"\n#include "diffusion/flow_match.h"\n', [1, 2]),
    ("src/models/a.cc", '#include "ops/cpu/cpu_executor.h"\n', [1]),
    ("src/stream/a.cc", '#include "models/umt5.h"\n#include "recipes/presets.h"\n', [2]),
    ("src/stream/a.cc", '#include "ultraflash/engine.h"\n#include "ultraflash/none.h"\n', [2]),
    ("src/recipes/a.cc", '#include "stream/networks.h"\n#include "verify/verify.h"\n', [2]),
    ("src/train/a.cc", '#include "recipes/presets.h"\n#include <torch/torch.h>\n', []),
    ("src/train/a.cc", '#include "ops/autograd/torch_tensor.h"\n#include "ops/cpu/a.h"\n', [2]),
    ("src/models/a.cc", '#include "ops/autograd/torch_tensor.h"\n', [1]),
    ("src/ops/devices.cc", '#include "ops/cpu/cpu_executor.h"\n#include "ops/none/none.h"\n', []),
    ("src/ops/executor.cc", '#include "ops/cpu/cpu_executor.h"\n', [1]),
    ("src/ops/cuda/a.cc", '#include "ops/cuda/a.h"\n#include <cuda_runtime.h>\n', []),
    ("src/ops/cuda/a.cc", '#include "ops/cpu/kernels/simd.h"\n#include "ops/types.h"\n', [1]),
    ("src/ops/cpu/a.cc", "#include <oneapi/dnnl/dnnl.hpp>\n#include <omp.h>\n", [1]),
    ("src/ops/cpu/onednn.cc", "#include <oneapi/dnnl/dnnl.hpp>\n", []),
    ("src/parallel/nccl_communicator.cc", "#include <nccl.h>\n#include <cuda_runtime.h>\n", []),
    ("src/parallel/mpi_communicator.cc", "#include <mpi.h>\n#include <cuda_runtime.h>\n", [2]),
    ("src/media/a.cc", "#include <libavcodec/avcodec.h>\n#include <png.h>\n", []),
    ("src/stream/a.cc", "#include <libswscale/swscale.h>\n#include <torch/torch.h>\n", [1, 2]),
    ("src/stream/a.cc", "#include <nlohmann/json.hpp>\n#include <spdlog/spdlog.h>\n", [1, 2]),
    ("src/text/a.cc", "#include <sentencepiece_processor.h>\n#include <utf8proc.h>\n", [1]),
    ("src/media/a.cc", "#include <unistd.h>\n#include <sys/stat.h>\n#include <boost/a.hpp>\n", [3]),
    ("src/media/a.cc", "#include <stdio.h>\n#include <media/frame.h>\n", [1, 2]),
    ("src/media/a.cc", '#include "frame.h"\n#include "media/../core/a.h"\n', [1, 2]),
    ("src/media/a.cc", "#include HEADER\n", [1]),
    ("src/media/a.cc", '#  include  "ops/types.h"  // why\n', [1]),
    ("src/media/a.cc", '// #include "ops/types.h"\n/*\n#include "ops/types.h"\n*/\n', []),
    ("src/media/a.cc", 'const char* a = "/*";\n#include "ops/types.h"\n', [2]),
    ("src/media/a.cc", '/* two\nlines */\n#include "ops/types.h"\n', [3]),
    ("src/nowhere/a.cc", "#include <vector>\n", [1]),
    ("apps/cli/a.cc", '#include "common.h"\n#include "stream/networks.h"\n', []),
    ("apps/cli/a.cc", "#include <CLI/CLI.hpp>\n#include <nlohmann/json.hpp>\n", []),
    ("apps/cli/a.cc", '#include "ops/cpu/cpu_executor.h"\n#include "apps/cli/common.h"\n', [1, 2]),
    ("include/ultraflash/log.h", '#include "ultraflash/engine.h"\n#include <string>\n', []),
    ("include/ultraflash/log.h", '#include "core/check.h"\n#include <fmt/format.h>\n', [1, 2]),
    ("include/ultraflash/log.h", "#include <unistd.h>\n", [1]),
    ("include/ultraflash/none.h", "#include <string>\n", [1]),
]


def self_test():
    wrong = 0
    for path, text, expected in CASES:
        got = list(check_text(path, text))
        if [line for line, _ in got] != expected:
            wrong += 1
            print("self-test: %s with %r: expected violations on lines %s, got %s"
                  % (path, text, expected, got))
    print("include rules: %d cases, %d wrong" % (len(CASES), wrong))
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description="Checks the directions of the includes.")
    parser.add_argument("--root", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent)
    parser.add_argument("--self-test", action="store_true", help="check the rules themselves")
    arguments = parser.parse_args()
    return self_test() if arguments.self_test else check_tree(arguments.root)


if __name__ == "__main__":
    sys.exit(main())
