#!/usr/bin/env bash
# Installs the build in build/ into a temporary folder, builds examples/dilated_attention against it with
# find_package(LongNet) alone, and runs it and the installed program. Usage: tests/install/run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install build --prefix "$work/prefix" > "$work/install.log"
cmake -S examples/dilated_attention -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$work/prefix" > "$work/configure.log" || { tail -n 20 "$work/configure.log"; exit 1; }
cmake --build "$work/build" > "$work/build.log" || { tail -n 30 "$work/build.log"; exit 1; }
"$work/build/dilated_attention"
"$work/prefix/bin/longnet" --version
