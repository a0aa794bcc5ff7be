#!/usr/bin/env bash
# Installs what the project needs and this machine lacks, through apt (Debian 12, Ubuntu 24.04).
# Usage: scripts/setup.sh    As root, or with sudo. Does nothing, as anybody, where all is there.
set -euo pipefail
packages=(
  g++ cmake ninja-build                      # tool chain: C++20, CMake >= 3.25
  libopenmpi-dev openmpi-bin                 # ranks
  libdnnl-dev ocl-icd-opencl-dev             # oneDNN: matrix products; its CMake package looks for OpenCL
  libyaml-cpp-dev libcli11-dev nlohmann-json3-dev  # configuration, command line, JSON
  libspdlog-dev libfmt-dev                   # logs, texts
  zlib1g-dev                                 # .gz data, checksums
  libgtest-dev libgmock-dev libbenchmark-dev # tests, benchmarks
  libboost-context-dev                       # fibers of the emulator that runs CUDA kernels in tests
  ccache python3                             # faster rebuilds; counting test results
)
missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2> /dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
  echo "setup: all ${#packages[@]} packages are there"
  exit 0
fi
if ! command -v apt-get > /dev/null; then
  echo "setup: no apt-get here; install by hand what corresponds to: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo > /dev/null; then
    echo "setup: needs root or sudo to install: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
echo "setup: done"
