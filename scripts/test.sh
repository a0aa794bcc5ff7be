#!/usr/bin/env bash
# Every test, from a fresh clone: set-up, build with warnings as errors, all test programs on 1, 2, 4 and 8
# ranks, the same unit tests under sanitizers, and a program built against the installed library.
# Usage: scripts/test.sh     Last line: "N passed, N failed"; exits 1 if anything failed.
# LN_TEST_LONG=1 makes property tests, fuzzing and kill tests longer (scripts/test_long.sh).
set -uo pipefail
[ $# = 0 ] || { echo "test: takes no arguments; usage: scripts/test.sh" >&2; exit 64; }
cd "$(dirname "$0")/.."
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
passed=0 failed=0
say() { printf '\n== %s\n' "$*"; }

# one NAME COMMAND...: a step that passes or fails as a whole.
one() {
  local name=$1; shift
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $name"; fi
}

# tests BUILD_FOLDER LABELS...: ctest there; every CTest entry counts.
tests() {
  local folder=$1; shift
  # Two tests at a time, two threads each: a thread that spins takes the core from one that works.
  OMP_WAIT_POLICY=passive ctest --test-dir "$folder" --output-on-failure -j 2 "$@" > "$results/ctest.log" 2>&1
  local good total
  total=$(sed -nE 's/.*tests? failed out of ([0-9]+)$/\1/p' "$results/ctest.log" | tail -n 1)
  bad=$(sed -nE 's/.*, ([0-9]+) tests? failed out of [0-9]+$/\1/p' "$results/ctest.log" | tail -n 1)
  if [ -z "$total" ]; then
    tail -n 30 "$results/ctest.log"; failed=$((failed + 1)); echo "FAILED: ctest in $folder"; return
  fi
  good=$((total - bad))
  passed=$((passed + good)); failed=$((failed + bad))
  if [ "$bad" != 0 ]; then
    grep -E -B 2 -A 25 'Failure|\*\*\*Failed|Timeout' "$results/ctest.log" | head -150
    sed -n '/The following tests FAILED/,$p' "$results/ctest.log"
  fi
  grep -E '^ +(worst|[0-9a-z-]+.*worst)' "$results/ctest.log" | head -40 || true
  echo "$folder: $good of $total passed"
}

finish() {
  printf '\n%d passed, %d failed\n' "$passed" "$failed"
  if [ "$failed" = 0 ]; then exit 0; else exit 1; fi
}

say "set-up and build"
one "set-up" scripts/setup.sh tests
one "build" scripts/build.sh cpu -DLN_WERROR=ON
[ "$failed" = 0 ] || finish
say "tests"
tests build
one "CUDA kernels under the emulator" grep -qE ' simt\.plain\.[0-9]+ .*Passed' "$results/ctest.log"
say "unit and kernel tests under address and undefined-behaviour sanitizers"
one "sanitizer build" env LN_TARGETS="core_test kernels_test data_test model_test" \
  scripts/build.sh cpu-sanitize -DLN_WERROR=ON
if [ -x build-sanitize/tests/model_test ]; then
  # Open MPI's own leaks are not ours; OpenMP's pool is never joined.
  export ASAN_OPTIONS=detect_leaks=0
  tests build-sanitize -L 'unit|kernel' --timeout 900
fi
say "a program against the installed library"
one "install" tests/install/run.sh
finish
