#!/usr/bin/env bash
# Installs the Debian 12 packages that ultraflash needs and this machine lacks.
#
#   tools/setup.sh           what building and running needs
#   tools/setup.sh test      and what test.sh needs
#   tools/setup.sh bench     and what the benchmark programs need
#   tools/setup.sh train     and libtorch for the trainer, into build/torch (about 700 MB)
#   tools/setup.sh cuda      and cudnn-frontend, into build/cudnn-frontend. Where there is no nvcc,
#                            also NVIDIA's Python packages of the CUDA 13 compiler with the headers of
#                            cuBLAS and cuDNN, into build/cuda-toolkit: enough to compile (0.9 GB is
#                            fetched, 0.3 GB kept), not to run
#   tools/setup.sh --list [GROUP...]   names the packages and installs nothing
#
# When nothing is missing it asks dpkg once and is done.
set -euo pipefail

# group package: what for
packages() {
  cat <<'LIST'
build  cmake                # configures the build
build  ninja-build          # runs it
build  g++                  # compiles it
build  pkgconf              # finds the libraries that have no CMake files
build  ccache               # makes the second build quick
build  git                  # the commit that programs and videos name, the list of files to check
build  libdnnl-dev          # oneDNN: matrix products and convolutions
build  libfmt-dev           # formatted text
build  libspdlog-dev        # the log of the programs
build  nlohmann-json3-dev   # JSON
build  libcli11-dev         # the command line
build  libutf8proc-dev      # Unicode normalisation of prompts
build  libavformat-dev      # video files: containers
build  libavcodec-dev       # video files: encoders and decoders
build  libavutil-dev        # video files: what those two share
build  libswscale-dev       # video files: pixel formats
build  libpng-dev           # PNG sequences
test   libgtest-dev         # the test framework
test   libgmock-dev         # its matchers
test   librapidcheck-dev    # properties on random input
test   libsentencepiece-dev # a second reader to compare the tokenizer with
test   ffmpeg               # ffmpeg and ffprobe: a second reader and writer of video files
test   clang                # the second compiler, for the sanitizers
test   libclang-rt-14-dev   # its sanitizers and libFuzzer
test   libomp-14-dev        # its OpenMP
test   llvm                 # names and lines in sanitizer reports
test   clang-format-14      # the form of the code
test   python3              # the check of the includes, the sum of the results
bench  libbenchmark-dev     # benchmark programs of single operations
train  python3-pip          # fetches libtorch
train  libopencv-video-dev  # dense optical flow for degraded clips
cuda   python3-pip          # fetches the headers of cudnn-frontend, and the compiler
LIST
}

say() { printf 'setup: %s\n' "$*" >&2; }

list_only=false
groups=(build)
for argument in "$@"; do
  case $argument in
    --list) list_only=true ;;
    build) ;;
    test | bench | train | cuda) groups+=("$argument") ;;
    *)
      say "unknown group '$argument'; there are build, test, bench, train and cuda"
      exit 2
      ;;
  esac
done

wanted=()
while read -r group package _; do
  for chosen in "${groups[@]}"; do
    if [[ $chosen == "$group" ]]; then wanted+=("$package"); fi
  done
done < <(packages)

if $list_only; then
  printf '%s\n' "${wanted[@]}"
  exit 0
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  say "this is not Debian, so nothing was checked or installed; what is needed is called there:" \
    "${wanted[*]}"
  exit 0
fi

missing=()
# dpkg-query prints what it knows and fails when it does not know all.
installed=" $(dpkg-query --show --showformat='${Package}=${db:Status-Status} ' "${wanted[@]}" \
  2>/dev/null || true)"
for package in "${wanted[@]}"; do
  if [[ $installed != *" $package=installed "* ]]; then missing+=("$package"); fi
done

# libtorch as the Python package has it: for the trainer its headers and its CPU part, which asks for
# two small libraries of CUDA even where there is no GPU. Its CUDA part, four times as large, is
# taken from the machine that has a GPU.
fetch_libtorch() {
  local folder
  [[ " ${groups[*]} " == *" train "* ]] || return 0
  folder=$(dirname "$0")/../build/torch
  if [[ -e $folder/torch/lib/libtorch_cpu.so ]]; then return 0; fi
  if python3 -c 'import torch' 2>/dev/null; then return 0; fi
  say "fetching libtorch into build/torch"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --target "$folder" torch==2.11.0 nvidia-cuda-cupti==13.0.85 nvidia-cuda-runtime==13.0.96
  rm -f "$folder"/torch/lib/libtorch_cuda*.so "$folder"/torch/lib/libtorch_nvshmem.so
}
# Only headers are taken from it.
fetch_cudnn_frontend() {
  local folder
  [[ " ${groups[*]} " == *" cuda "* ]] || return 0
  folder=$(dirname "$0")/../build/cudnn-frontend
  if [[ -e $folder/include/cudnn_frontend.h ]]; then return 0; fi
  say "fetching cudnn-frontend into build/cudnn-frontend"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --target "$folder" nvidia-cudnn-frontend==1.15.0
}
# The compiler and what it needs, where NVIDIA's toolkit is not installed.
fetch_cuda_toolkit() {
  local folder root
  [[ " ${groups[*]} " == *" cuda "* ]] || return 0
  if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then return 0; fi
  folder=$(dirname "$0")/../build/cuda-toolkit
  root=$folder/nvidia/cu13
  if [[ -e $root/complete ]]; then return 0; fi
  say "fetching the CUDA 13 compiler into build/cuda-toolkit"
  rm -rf "$folder"
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --no-cache-dir \
    --target "$folder" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.0.2.14 \
    nvidia-cudnn-cu13==9.13.0.50
  # Libraries are opened on the machine that has the GPU.
  find "$folder" \( -name 'libcublas*' -o -name 'libnvblas*' -o -name 'libcudnn*' \) -delete
  cp -r "$folder"/nvidia/cudnn/include/. "$root/include/"
  ln -sfn lib "$root/lib64"
  ln -sf libcudart.so.13 "$root/lib/libcudart.so"  # CMake looks for it, nothing links it
  : >"$root/complete"
}
if ((${#missing[@]} == 0)); then
  fetch_libtorch
  fetch_cudnn_frontend
  fetch_cuda_toolkit
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null 2>&1; then
    say "missing packages, and neither root nor sudo to install them: ${missing[*]}"
    exit 1
  fi
  as_root=(sudo)
  if [[ ! -t 0 ]] && ! sudo -n true 2>/dev/null; then
    say "missing packages, and sudo wants a password but there is no terminal: ${missing[*]}"
    exit 1
  fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q \
    -o Acquire::Retries=3 -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" </dev/null \
    >>"$log" 2>&1
}

say "installing ${#missing[@]} packages: ${missing[*]}"
# A list that cannot be refreshed may still be good enough; if not, installing says so.
apt update || say "apt-get update failed; trying with the package lists that are here"
if ! apt install -y --no-install-recommends "${missing[@]}"; then
  tail -n 20 "$log" >&2
  say "apt-get could not install: ${missing[*]}"
  exit 1
fi
fetch_libtorch
fetch_cudnn_frontend
fetch_cuda_toolkit
say "done in $SECONDS s"
