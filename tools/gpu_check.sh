#!/usr/bin/env bash
# Everything that a machine with a GPU can say about an already built program: device tests, goldens,
# the benchmark tables, the sanitizers. Needs the driver, cuBLASLt and cuDNN, and nothing else.
#
#   tools/gpu_check.sh BIN REPORT_FOLDER [--quick] [--only PART[,PART...]]
#
# BIN is the folder of the programs (build/cuda-portable/bin), REPORT_FOLDER gets gpu_check.json,
# gpu_check.md and the logs. --quick leaves out the endless streams, the sanitizers and the 2K
# benchmark. --only runs some of the parts, which are tests, networks, goldens, bench, bench2k,
# streams, memcheck, racecheck and synccheck: where a machine is lent for minutes, calls with one
# REPORT_FOLDER make one report. What this machine or build lacks is reported as skipped. Where the
# CUDA libraries are those of Python packages, their folders are found and put into LD_LIBRARY_PATH.
# UF_GOLDEN_DIR may name a folder with more goldens. Exits with 1 when a check of this call failed.
set -uo pipefail

usage() {
  echo "usage: tools/gpu_check.sh BIN REPORT_FOLDER [--quick] [--only PART[,PART...]]" >&2
  exit 2
}
(($# >= 2)) || usage
bin=$(cd "$1" && pwd)
mkdir -p "$2/checks"
report=$(cd "$2" && pwd)
shift 2
quick=false
parts=tests,networks,goldens,bench,bench2k,streams,memcheck,racecheck,synccheck
only=
while (($# > 0)); do
  case $1 in
    --quick) quick=true ;;
    --only)
      (($# >= 2)) || usage
      only=$2
      shift
      ;;
    *) usage ;;
  esac
  shift
done
if [[ -z $only ]]; then  # a report from the start
  rm -f "$report"/checks/*
  only=$parts
  if $quick; then only=tests,networks,goldens,bench; fi
fi
for part in ${only//,/ }; do
  [[ ,$parts, == *,$part,* ]] || usage
done
# wants PART: whether this call runs it.
wants() { [[ ,$only, == *,$1,* ]]; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export UF_SOURCE_DIR=$root

if ! ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.13' && command -v python3 >/dev/null; then
  folders=$(python3 -c 'import glob, sysconfig
print(":".join(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib")))')
  export LD_LIBRARY_PATH=$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

failed=0
# keep NAME RESULT SECONDS: for the report of this call and of later ones.
keep() { printf '%s|%s|%s\n' "$1" "$2" "$3" >"$report/checks/$1"; }
# check NAME SECONDS COMMAND...: its output goes to a log of that name.
check() {
  local name=$1 limit=$2 begin=$SECONDS result=passed
  shift 2
  if ! timeout "$limit" "$@" >"$report/$name.log" 2>&1; then
    result=failed
    failed=$((failed + 1))
  fi
  keep "$name" "$result" $((SECONDS - begin))
  printf '%-34s %s (%d s)\n' "$name" "$result" $((SECONDS - begin))
}

# skip NAME WHY: what could not be checked here.
skip() {
  keep "$1" "skipped: $2" 0
  printf '%-34s skipped: %s\n' "$1" "$2"
}
# program NAME SECONDS PROGRAM ARGUMENTS...: a check by a program that a build may lack.
program() {
  local name=$1 limit=$2 file=$bin/$3
  shift 3
  if [[ -x $file ]]; then check "$name" "$limit" "$file" "$@"; else skip "$name" "not built"; fi
}

device=$("$bin/ultraflash" doctor 2>/dev/null | sed -n 's/^ *yes cuda:0: //p')
if [[ -z $device ]]; then
  "$bin/ultraflash" doctor >&2
  echo "gpu_check: there is no usable GPU, so nothing was checked" >&2
  exit 1
fi
echo "$device"

if wants tests; then
  check doctor 60 "$bin/ultraflash" doctor
  program ops 600 test_ops '--gtest_filter=*cuda*' --gtest_brief=1
  program errors 60 test_cuda_errors --gtest_brief=1
  program block_sparse 600 test_block_sparse
  program dense_attention 600 test_dense_attention --bench
  program rows 600 test_rows --bench
  program text_attention 600 test_text_attention --bench
  program conv 600 test_conv --bench
fi
if wants networks; then
  program cascade 600 cascade_check
  program full_size_1k 900 full_size_check
  if ! $quick; then
    program cascade_1k 600 cascade_check --full
    program full_size_2k 900 full_size_check 2k
  fi
fi
if wants goldens; then
  goldens=("$root"/tests/golden/*.safetensors)
  if [[ -n ${UF_GOLDEN_DIR:-} ]]; then goldens+=("$UF_GOLDEN_DIR"/*.safetensors); fi
  check goldens_f32 600 "$bin/ultraflash" verify --device cuda --tolerance 1e-3 "${goldens[@]}"
  check goldens_bf16 600 "$bin/ultraflash" verify --device cuda --dtype bf16 --tolerance 3e-2 \
    --inject-masks "${goldens[@]}"
  check goldens_bf16_own_masks 600 "$bin/ultraflash" verify --device cuda --dtype bf16 \
    --tolerance 3e-2 "$root/tests/golden/sparse_sr_dit_small.safetensors"
fi

bench() {
  local name=$1
  shift
  check "bench_$name" 900 "$bin/ultraflash" bench --device cuda --no-encode \
    --json-file "$report/bench_$name.json" "$@"
}
clips=10
$quick && clips=3
if wants bench; then
  bench 1k_bf16 --recipe ultra-flash-1k --random-weights --dtype bf16 --clips $clips --operations \
    --trace "$report/trace_1k_bf16.json"
  bench 1k_fp8 --recipe ultra-flash-1k --random-weights --dtype fp8 --clips $clips --operations
  bench 1k_fp8_attention --recipe ultra-flash-1k --random-weights --dtype fp8 --attention fp8 \
    --clips $clips --operations
  bench 1k_fp8_attention_fast_sums --recipe ultra-flash-1k --random-weights --dtype fp8 \
    --attention fp8 --fp8-sums fast --clips $clips --operations
fi
if wants bench2k; then
  bench 2k_bf16 --recipe ultra-flash-2k --random-weights --dtype bf16 --clips $clips --operations
  bench 2k_fp8 --recipe ultra-flash-2k --random-weights --dtype fp8 --clips $clips --operations
  bench 2k_fp8_attention --recipe ultra-flash-2k --random-weights --dtype fp8 --attention fp8 \
    --clips $clips --operations
fi
if wants streams; then
  bench endless_21 --recipe ultra-flash-1k --random-weights --dtype bf16 --clips 1 --chunks 300 \
    --window 21
  bench endless_12_and_3 --recipe ultra-flash-1k --random-weights --dtype bf16 --clips 1 \
    --chunks 300 --window 15 --sink 3
fi
for tool in memcheck racecheck synccheck; do
  wants $tool || continue
  if ! command -v compute-sanitizer >/dev/null; then
    skip "$tool" "no compute-sanitizer"
    continue
  fi
  sanitizer=(compute-sanitizer --tool "$tool" --error-exitcode 1)
  # racecheck reports hazards inside the libraries' own kernels, so there only ours run.
  operations='*cuda_plain*'
  [[ $tool == memcheck ]] && operations='*cuda_f32*:*cuda_bf16*'
  if [[ -x $bin/test_ops ]]; then
    check "$tool" 1800 "${sanitizer[@]}" "$bin/test_ops" "--gtest_filter=$operations" \
      --gtest_brief=1
  fi
  for test in test_rows test_text_attention test_conv test_dense_attention test_block_sparse; do
    [[ -x $bin/$test ]] && check "${tool}_${test#test_}" 1800 "${sanitizer[@]}" "$bin/$test"
  done
done

mapfile -t rows < <(cat "$report"/checks/* 2>/dev/null)
{
  printf '# GPU check\n\n%s\n\n| check | result | seconds |\n|---|---|---|\n' "$device"
  for row in "${rows[@]}"; do
    IFS='|' read -r name result seconds <<<"$row"
    printf '| %s | %s | %s |\n' "$name" "$result" "$seconds"
  done
  for log in "$report"/bench_*.log; do
    [[ -e $log ]] && printf '\n```\n%s\n```\n' "$(cat "$log")"
  done
} >"$report/gpu_check.md"
{
  printf '{"device": "%s", "failed": %d, "checks": [' "$device" \
    "$(cat "$report"/checks/* | grep -c '|failed|')"
  separator=
  for row in "${rows[@]}"; do
    IFS='|' read -r name result seconds <<<"$row"
    printf '%s{"name": "%s", "result": "%s", "seconds": %s}' "$separator" "$name" "$result" \
      "$seconds"
    separator=', '
  done
  printf '], "bench": {'
  separator=
  for file in "$report"/bench_*.json; do
    [[ -s $file ]] || continue
    name=${file##*/bench_}
    printf '%s"%s": %s' "$separator" "${name%.json}" "$(cat "$file")"
    separator=', '
  done
  printf '}}\n'
} >"$report/gpu_check.json"
echo "report: $report/gpu_check.md"
((failed == 0))
