#!/usr/bin/env bash
# Makes one system call after another fail in a training run (faults/io_faults.cpp) and checks that nothing
# is lost: the run ends well, or with an error that names the last good checkpoint; every checkpoint is whole;
# no half-written folder stays; and the same command afterwards ends with the same weights, bit for bit.
# Then one save that fails for good, with both values of checkpoint.on_failure, on one rank and on two with a
# divided optimizer. Usage: tests/cli/io_fault_test.sh PROGRAM SHIM
#   FAULTS: how many places per kind of call (default 2, without limit with LN_TEST_LONG=1)
set -uo pipefail
program=$(realpath "$1") shim=$(realpath "$2")
limit=${FAULTS:-$([ -n "${LN_TEST_LONG:-}" ] && echo 100000 || echo 2)}
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
RANDOM=${SEED:-7}
export OMP_NUM_THREADS=1
fail() { echo "FAILED: $*"; [ -f run.log ] && tail -n 20 run.log; exit 1; }

for i in $(seq 400); do echo "line $i of a small text about nothing, $((i * i % 977))"; done > text.txt
cat > config.yaml <<'Y'
model: {dim: 16, heads: 2, ffn_dim: 16, layers: 1, branches: [[16, 1], [64, 4]]}
data: {train: text.txt, cache: cache}
train: {sequence_length: 64, steps: 4, evaluate_every: 0}
optimizer: {warmup_steps: 1}
checkpoint: {every: 1, keep_last: 2}
run: {folder: run, log_every: 1000}
Y
# In the same folder as the others: the weights' file holds the configuration.
"$program" train config.yaml > run.log 2>&1 || fail "the undisturbed run"
mv run whole

runs=0 failed=0 carried=0 ended=0
# CALL ERRNO COUNT AT: count 0 is every call from there on.
disturb() {
  rm -rf run report
  LD_PRELOAD=$shim LN_FAULT_REPORT=$work/report LN_FAULT_PATH=run/ LN_FAULT_CALL=$1 LN_FAULT_ERRNO=$2 \
    LN_FAULT_COUNT=$3 LN_FAULT_AT=$4 timeout 60 "$program" train config.yaml > run.log 2>&1
  local status=$? what="$1 $4 (errno $2, count $3)"
  [ -s report ] || return 1  # there is no such call any more
  runs=$((runs + 1)) failed=$((failed + $(wc -l < report)))
  [ $status = 0 ] || [ $status = 1 ] || fail "$what: exit code $status"
  if [ $status = 0 ]; then
    carried=$((carried + 1))
    [ -f run/step-00000004/state.json ] || fail "$what: exit code 0 without the last checkpoint"
  else
    ended=$((ended + 1))
    grep -q '^error: ' run.log || fail "$what: exit code 1 without an error line"
    grep -qE 'filesystem error|terminate|what\(\)' run.log && fail "$what: a raw message"
  fi
  # What can still be removed is gone; a call that fails for good may leave it to the next start.
  [ "$3" = 0 ] || [ "$1" = unlink ] || ! compgen -G 'run/.tmp-step-*' > /dev/null || fail "$what: .tmp-step left"
  for path in run/step-*; do
    [ -e "$path" ] || continue
    "$program" evaluate "$path" --samples 1 > evaluate.log 2>&1 || { cat evaluate.log; fail "$what: $path"; }
  done
  "$program" train config.yaml > run.log 2>&1 || fail "$what: the start after it"
  for file in model.safetensors optimizer.safetensors; do
    cmp -s whole/step-00000004/$file run/step-00000004/$file || fail "$what: $file differs"
  done
  ! compgen -G 'run/.tmp-step-*' > /dev/null || fail "$what: .tmp-step left after the next start"
}

for call in open write fsync rename read mkdir unlink; do
  for kind in "5 1" "28 1" "5 0" "28 0"; do
    [ "$call" = read ] && [ "${kind%% *}" = 28 ] && continue
    at=1
    for _ in $(seq "$limit"); do
      disturb $call $kind $at || break
      at=$((at + (limit < 100 ? 1 + RANDOM % 9 : 1)))
    done
  done
done
# The save of step 2 fails for good, on the rank that writes. RANKS ON_FAILURE EXIT
fail_save() {
  local ranks=$1 on_failure=$2 expected=$3 settings=() launch=() status what="on_failure=$2 on $1 ranks"
  [ "$ranks" = 1 ] || launch=("$source_dir/scripts/mpirun_local.sh" "$ranks") settings=(parallel.shard_optimizer=true)
  settings+=("checkpoint.on_failure=$on_failure")
  rm -rf run "whole$ranks$on_failure"
  "${launch[@]}" "$program" train config.yaml "${settings[@]}" > run.log 2>&1 || fail "$what: undisturbed"
  mv run "whole$ranks$on_failure"
  LD_PRELOAD=$shim LN_FAULT_PATH=run/.tmp-step-00000002 LN_FAULT_CALL=write LN_FAULT_ERRNO=28 LN_FAULT_COUNT=0 \
    LN_FAULT_AT=1 timeout 60 "${launch[@]}" "$program" train config.yaml "${settings[@]}" > run.log 2>&1
  status=$?
  [ $status = "$expected" ] || fail "$what: exit code $status"
  [ "$(grep -c 'attempt [12] of 2 to save failed: .*No space left' run.log)" = 2 ] || fail "$what: two attempts"
  ! compgen -G 'run/.tmp-step-*' > /dev/null || fail "$what: .tmp-step left"
  [ ! -e run/step-00000002 ] || fail "$what: half a checkpoint"
  if [ "$on_failure" = stop ]; then
    [ "$(grep -c '^error' run.log)" = 1 ] || fail "$what: error lines"
    grep -q '^error.*: step 2: the checkpoint cannot be saved: .*; the last good checkpoint is run/step-00000001$' \
      run.log || fail "$what: the error line"
    [ "$(ls -d run/step-*)" = run/step-00000001 ] || fail "$what: $(ls -d run/step-*)"
  else
    grep -q 'step 2: no checkpoint saved (failed saves so far: 1); .*; the last good checkpoint is run/step-00000001$' \
      run.log || fail "$what: the warning"
  fi
  "${launch[@]}" "$program" train config.yaml "${settings[@]}" > run.log 2>&1 || fail "$what: the start after it"
  for file in model.safetensors optimizer.safetensors; do
    cmp -s "whole$ranks$on_failure/step-00000004/$file" run/step-00000004/$file || fail "$what: $file differs"
  done
}
for ranks in 1 2; do
  fail_save $ranks stop 1
  fail_save $ranks continue 0
done

[ $runs -gt 10 ] || fail "only $runs runs were disturbed"
echo "$runs runs, $failed failed calls: $carried ended well, $ended with an error; nothing lost"
