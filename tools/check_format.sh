#!/usr/bin/env bash
# Checks that all C++ and CUDA files have the form that .clang-format describes (clang-format 14:
# other versions differ). With --fix, gives it to them.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
mode=(--dry-run --Werror)
if [[ ${1:-} == --fix ]]; then mode=(-i); fi

if ! format=$(command -v clang-format-14); then
  echo "format: clang-format-14 is missing; run tools/setup.sh test" >&2
  exit 1
fi

# All tracked files; outside a git repository, all files. The checkout may belong to another user.
if git -c safe.directory='*' rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  mapfile -d '' files < <(git -c safe.directory='*' ls-files -z '*.h' '*.cc' '*.cu' '*.cuh')
else
  mapfile -d '' files < <(find apps bench fuzz include src tests -type f -regextype posix-extended \
    -regex '.*\.(h|cc|cu|cuh)' -print0)
fi
if ((${#files[@]} == 0)); then
  echo "format: no C++ files found in $root" >&2
  exit 1
fi

if ! printf '%s\0' "${files[@]}" | xargs -0 -P "$(nproc)" -n 16 "$format" "${mode[@]}"; then
  echo "format: some files differ; tools/check_format.sh --fix mends them" >&2
  exit 1
fi
echo "format: ${#files[@]} files"
