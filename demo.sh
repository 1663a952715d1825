#!/usr/bin/env bash
# From a prompt to a video: installs what is missing (Debian packages), builds ultraflash and makes
# ultraflash-demo.mp4 in the current folder. Arguments replace the demo's own, for example
#
#   ./demo.sh --prompt "two green stars circling" --scale 3 --seconds 10 --out stars.mp4
#
# build/release/bin/ultraflash generate --help names them all.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$root/tools/setup.sh" build
"$root/tools/build.sh" release ultraflash

if (($# == 0)); then
  set -- --seed 1 --seconds 5 \
    --prompt "a large striped yellow star moving slowly to the right on a navy background" \
    --out "$PWD/ultraflash-demo.mp4"
fi
program=$root/build/release/bin/ultraflash
printf '\n%s generate' "$program"
printf ' %q' "$@"
printf '\n'
"$program" generate "$@"
