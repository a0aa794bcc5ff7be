#!/usr/bin/env bash
# Installs the packages that the project needs and this machine does not have, through apt (Debian 12 and 13).
# Usage: scripts/setup.sh [WHAT ...]    As root, or with sudo. If everything is installed it does nothing and needs no rights.
#   program  what builds and runs the program: the default
#   tests    the program's packages, and those of the tests and benchmarks
#   cuda     the program's packages, and beside a CUDA toolkit the headers of cudnn-frontend, which pip puts
#            into third_party/ (git ignores it)
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- program
with_tests=no with_cuda=no
for what in "$@"; do
  case $what in
    program) ;;
    tests) with_tests=yes ;;
    cuda) with_cuda=yes ;;
    *)
      echo "setup: \"$what\" is not known; usage: scripts/setup.sh [program] [tests] [cuda]" >&2
      exit 64 ;;
  esac
done

# Headers only, so nothing of Python is needed to build or to run. Without them the CUDA build has no
# cuDNN and says so; that is no error here.
frontend_version=1.32.0
frontend=third_party/cudnn_frontend
cudnn_frontend() {
  [ $with_cuda = yes ] || return 0
  { [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || command -v nvcc > /dev/null; } || {
    echo "setup: no CUDA toolkit (nvcc) in ${CUDA_HOME:-/usr/local/cuda}: cudnn-frontend is not fetched (set CUDA_HOME)"
    return 0
  }
  local there
  there=$(cat $frontend/version 2> /dev/null || true)
  [ "$there" != "$frontend_version" ] || return 0
  if ! command -v python3 > /dev/null || ! python3 -m pip --version > /dev/null 2>&1; then
    echo "setup: no pip: cudnn-frontend $frontend_version is not fetched (CUDNN_FRONTEND_DIR can name a copy)"
    return 0
  fi
  rm -rf $frontend $frontend.new
  if python3 -m pip install -q --no-deps --target $frontend.new "nvidia-cudnn-frontend==$frontend_version" \
      2> /dev/null && [ -f $frontend.new/include/cudnn_frontend.h ]; then
    mkdir -p $frontend
    mv $frontend.new/include $frontend.new/*.dist-info $frontend/
    echo $frontend_version > $frontend/version
    echo "setup: cudnn-frontend $frontend_version is in $frontend"
  else
    echo "setup: cudnn-frontend $frontend_version could not be fetched; CUDA builds will not use cuDNN"
  fi
  rm -rf $frontend.new
}
packages=(
  g++ cmake ninja-build                      # tool chain: C++20, CMake >= 3.25
  libopenmpi-dev openmpi-bin                 # ranks
  libdnnl-dev ocl-icd-opencl-dev             # oneDNN: matrix products; its CMake package looks for OpenCL
  libyaml-cpp-dev libcli11-dev nlohmann-json3-dev  # configuration, command line, JSON
  libspdlog-dev libfmt-dev                   # logs, texts
  zlib1g-dev                                 # .gz data, checksums
)
[ $with_tests = no ] || packages+=(
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
  echo "setup: all ${#packages[@]} packages are installed"
  cudnn_frontend
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
cudnn_frontend
echo "setup: done"
