#!/usr/bin/env bash
# Golden files and products where OpenMP gives other teams than are asked for: by its settings, by a
# process that may use one core only, and on two ranks. Usage: threads_test.sh MODEL_TEST KERNELS_TEST DIST_TEST
set -euo pipefail
model=$1 kernels=$2 dist=$3
scripts=$(cd "$(dirname "$0")/../../scripts" && pwd)
# Other programs may want the cores, and these programs do not bound their spinning by themselves.
export OMP_WAIT_POLICY=passive GTEST_COLOR=no
failed=0
check() {  # check WHAT COMMAND...: at least one test has run and all have passed
  local what=$1 out; shift
  if out=$("$@" 2>&1) && grep -q '\[  PASSED  \] [1-9]' <<< "$out"; then
    echo "passed: $what"
  else
    echo "FAILED: $what"; tail -n 40 <<< "$out"; failed=1
  fi
}
for setting in OMP_DYNAMIC=true OMP_THREAD_LIMIT=1 OMP_THREAD_LIMIT=3 OMP_NESTED=true OMP_MAX_ACTIVE_LEVELS=0; do
  check "golden files, $setting" \
    env OMP_NUM_THREADS=4 "$setting" "$model" --gtest_filter='*GoldenModel*'
  check "kernels, $setting" \
    env OMP_NUM_THREADS=4 "$setting" "$kernels" --gtest_filter='*Linear*:*LayerNorm*:*Activation*:*CrossEntropy*'
done
check "golden files, one core" taskset -c "$(taskset -cp $$ | sed 's/.*: *//; s/[-,].*//')" \
  "$model" --gtest_filter='*GoldenModel*'
check "golden files, one core, 4 threads" env OMP_NUM_THREADS=4 \
  taskset -c "$(taskset -cp $$ | sed 's/.*: *//; s/[-,].*//')" "$model" --gtest_filter='*GoldenModel*'
for setting in OMP_DYNAMIC=true OMP_THREAD_LIMIT=1; do
  check "golden training on two ranks, $setting" env OMP_NUM_THREADS=2 "$setting" \
    "$scripts/mpirun_local.sh" 2 "$dist" --gtest_filter='*Golden*'
done
exit $failed
