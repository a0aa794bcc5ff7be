#!/usr/bin/env bash
# Tests that take longer than scripts/test.sh: thousands of random cases on 1, 2, 4 and 8 ranks, hundreds of
# kills, long fuzzing, and the launchers. Writes bench/results/test_long.txt. Usage: scripts/test_long.sh
set -uo pipefail
[ $# = 0 ] || { echo "test_long: takes no arguments; usage: scripts/test_long.sh" >&2; exit 64; }
cd "$(dirname "$0")/.."
out=bench/results/test_long.txt
mkdir -p bench/results
scripts/setup.sh tests cuda && scripts/build.sh cpu -DLN_WERROR=ON || exit 1
export LN_TEST_LONG=1
{
  echo "command: scripts/test_long.sh"
  echo "commit:  $(git rev-parse --short HEAD 2> /dev/null || echo unknown)"
  echo "date:    $(date -u +%F)"
  grep -m 1 'model name' /proc/cpuinfo | sed 's/.*: /machine: /'
  for ranks in 1 2 4 8; do
    echo "== dist_test on $ranks ranks"
    timeout 3000 scripts/mpirun_local.sh "$ranks" build/tests/dist_test --gtest_color=no 2>&1 |
      grep -E 'worst|largest|PASSED|FAILED' || echo "no result"
  done
  for program in core kernels data model train; do
    echo "== ${program}_test"
    timeout 3000 "build/tests/${program}_test" --gtest_color=no 2>&1 | grep -E 'PASSED|FAILED|Failure' || echo "no result"
  done
  echo "== kills"
  timeout 3000 tests/cli/kill_test.sh build/longnet 2>&1 | tail -n 5
  echo "== fuzzing, 10 minutes a parser, address and undefined-behaviour sanitizers"
  timeout 3000 scripts/fuzz.sh 600 2>&1 | grep -E 'executed|ERROR|SUMMARY|runtime error|fuzz' || echo "no result"
  for launcher in two_hosts slurm image debian13; do
    echo "== launch: $launcher"
    timeout 7200 "tests/launch/$launcher.sh" build/longnet 2>&1 | tail -n 30 | grep . || echo "no result"
  done
  if [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    echo "== launch: CUDA image"
    timeout 5400 tests/launch/image.sh build/longnet cuda 2>&1 | tail -n 30 | grep . || echo "no result"
    echo "== CUDA build"
    scripts/check_spills.sh > /dev/null && echo "registers and spills: $(grep -c ' sm_' bench/results/ptxas.txt) kernels" || echo "FAILED: check_spills"
    scripts/build.sh cuda || echo "FAILED: CUDA build"
    ctest --test-dir build-cuda -L gpu 2>&1 | grep -E 'Passed|Skipped|Failed|tests passed' || echo "no result"
  fi
} | tee "$out"
! grep -q -E 'FAILED|no result' "$out"
