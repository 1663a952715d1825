#!/usr/bin/env bash
# Configures and builds one preset: tools/build.sh PRESET [TARGET...], into build/PRESET.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
preset=${1:?usage: tools/build.sh PRESET [TARGET...]}
shift

# One compiler a core, and 1 GiB for each: the largest sources need 0.8 GiB, with libtorch 1.6.
jobs=$(nproc)
gibibytes=1
if [[ $preset == train* ]]; then gibibytes=2; fi
memory=$(awk -v each=$gibibytes '$1 == "MemAvailable:" { print int($2 / 1048576 / each) }' \
  /proc/meminfo)
if ((memory < jobs)); then jobs=$((memory > 1 ? memory : 1)); fi

folder=$root/build/$preset
mkdir -p "$folder"
# Configuring takes a second when nothing changed, and picks up presets, packages and the commit.
if ! cmake -S "$root" --preset "$preset" >"$folder/configure.log" 2>&1; then
  cat "$folder/configure.log" >&2
  exit 1
fi
exec cmake --build "$folder" --parallel "$jobs" ${1:+--target "$@"}
