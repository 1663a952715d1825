#!/usr/bin/env bash
# Checks everything that this machine can check, after installing what that needs and is missing
# (Debian packages): the form of the code, the directions of the includes, then five builds with
# their tests, which replay the fuzz corpora too. Warnings are errors in all of them.
#
#   cpu     gcc, release code, all libraries
#   asan    clang, address and undefined behaviour sanitizers
#   plain   gcc without oneDNN, FFmpeg, libpng and OpenCV: our own code alone
#   train   as cpu with the trainer; tests what that adds. Fetches libtorch (700 MB) once
#   cuda-check  as cpu with the CUDA executor for one architecture (sm_90a); tests what needs no GPU.
#           Fetches the compiler (0.9 GB) once where there is no nvcc
#
#   ./test.sh           all of it
#   ./test.sh --quick   only the first build
#
# The last line counts test cases and checks: N passed, N failed, N skipped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
builds=(cpu asan plain train cuda-check)
if [[ $# == 1 && $1 == --quick ]]; then
  builds=(cpu)
elif (($# > 0)); then
  echo "usage: ./test.sh [--quick]" >&2
  exit 2
fi

passed=0
failures=()

headline() { printf '\n== %s (%d min %02d s)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

# check NAME COMMAND...: runs it and counts it as one.
check() {
  local name=$1
  shift
  headline "$name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failures+=("$name")
  fi
}

# Of the presets `train` and `cuda-check` only what `cpu` does not have.
selection() {
  case $1 in
    train) echo '^test_(autograd|train)' ;;
    cuda-check) echo '^test_(cuda_errors|block_sparse|dense_attention)' ;;
    *) echo . ;;
  esac
}

# run_tests PRESET: the results go to build/PRESET/results; failures are counted from there.
run_tests() {
  local folder=$root/build/$1
  headline "$1: tests"
  rm -rf "$folder/results"
  mkdir -p "$folder/results/gtest"
  GTEST_OUTPUT=xml:$folder/results/gtest/ GTEST_BRIEF=1 \
    ctest --test-dir "$folder" --tests-regex "$(selection "$1")" --output-on-failure \
    --parallel "$(nproc)" --output-junit "$folder/results/ctest.xml" 2>&1 | tee "$folder/results/ctest.log" || true
}

headline "packages"
groups=(test)
if [[ " ${builds[*]} " == *" train "* ]]; then groups+=(train); fi
if [[ " ${builds[*]} " == *" cuda-check "* ]]; then groups+=(cuda); fi
"$root/tools/setup.sh" "${groups[@]}"

check "include rules" "$root/tools/check_includes.py" --self-test
check "includes" "$root/tools/check_includes.py"
check "means of logs" "$root/tools/log_means.py" --self-test
check "format" "$root/tools/check_format.sh"

# Readable, complete reports; the sanitizers stop at the first error by default.
export ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1

built=()
for build in "${builds[@]}"; do
  before=${#failures[@]}
  check "$build: build" "$root/tools/build.sh" "$build"
  if ((${#failures[@]} == before)); then
    run_tests "$build"
    built+=("$root/build/$build")
  fi
done

headline "results"
for failure in "${failures[@]}"; do printf 'FAILED: %s\n' "$failure"; done
exec "$root/tools/sum_results.py" --passed "$passed" --failed "${#failures[@]}" "${built[@]}"
