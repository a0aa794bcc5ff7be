#!/usr/bin/env bash
# What a job on GPUs does when something breaks: every rank ends, with an exit code above zero, within
# seconds, and a line names rank, host and operation. Runs the program on emulated GPUs over the
# stand-in of NCCL, which breaks as LN_NCCL_FAULT says (nccl_faults.h).
# Usage: tests/simt/ranks/failures.sh lost_rank|nccl_error|hanging|set_up PROGRAM
set -uo pipefail
case=$1 program=$(realpath "$2")
source_dir=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*"; cat log; exit 1; }

ranks_left() {  # of this test: those of other tests run in other folders
  local process
  for process in $(pgrep -f "^$program "); do
    [ "$(readlink "/proc/$process/cwd")" != "$work" ] || return 0
  done
  return 1
}
job() {  # RANKS FAULT ARGUMENT...: its output in log, its exit code in status, its seconds in took
  local ranks=$1 fault=$2; shift 2
  local begin=$SECONDS
  LN_NCCL_FAULT=$fault OMP_NUM_THREADS=1 timeout -k 1 60 \
    "$source_dir/scripts/mpirun_local.sh" "$ranks" "$program" "$@" > log 2>&1
  status=$? took=$((SECONDS - begin))
}
collectives() {  # RANKS FAULT
  job "$1" "$2" bench collectives --backend cuda --min-bytes 64 --max-bytes 4096 --repetitions 3 \
    --timeout-s 3
}
train() {  # RANKS FAULT [LAYERS]
  [ -e text.txt ] || for i in $(seq 400); do echo "line $i of a small text about nothing"; done > text.txt
  cat > config.yaml <<'Y'
model: {dim: 32, heads: 2, ffn_dim: 64, layers: 2, branches: [[16, 1], [64, 2]]}
data: {train: text.txt, cache: cache}
train: {sequence_length: 64, batch_size: 1, steps: 200, evaluate_every: 0}
parallel: {shard_optimizer: true, timeout_s: 3}
run: {backend: cuda, dtype: f32, attention: plain}
Y
  rm -rf run
  job "$1" "$2" train config.yaml run.folder=run model.layers="${3:-2}"
}
expect() {  # LARGEST_SECONDS PATTERN: every pattern in a line of the log
  [ "$status" -ne 0 ] || fail "$case: exit code 0"
  [ "$status" -ne 124 ] && [ "$took" -le "$1" ] || fail "$case: took $took s"
  shift
  # Open MPI 5 breaks its lines.
  for pattern in "$@"; do
    grep -qE "$pattern" <(sed -z 's/ on\nsignal/ on signal/g' log) || fail "$case: no line like: $pattern"
  done
  [ "$(grep -c '^error ' log)" -le 3 ] || fail "$case: too many lines"
  # Nothing of the job goes on.
  for _ in $(seq 50); do ranks_left || break; sleep 0.1; done
  ranks_left && fail "$case: a rank is left"
}
host=$(hostname)

case $case in
  lost_rank)
    # The launcher sees it.
    collectives 2 'kill 1 60'
    expect 20 'rank 1 .*exited on signal 9'
    # In the middle of a training step the other rank adds, before it is killed, what it waits for. The launcher of
    # Open MPI 5 passes on nothing that is said after its signal.
    said=("^rank 0 on $host: told to end \(SIGTERM\) while [a-z -]+ in a group of 2 ranks waits for another rank")
    open_mpi_5=$(mpirun --version 2> /dev/null | grep -c 'Open MPI) 5')
    [ "$open_mpi_5" = 0 ] || said=()
    train 2 'kill 1 40'
    expect 20 'rank 1 .*exited on signal 9' ${said[@]+"${said[@]}"}
    # A launcher that does not (its own exit code is zero then): the others find out by the time limit. That of
    # Open MPI 5 always does.
    [ "$open_mpi_5" = 0 ] || exit 0
    export OMPI_MCA_orte_enable_recovery=1
    collectives 2 'kill 1 60'
    status=1
    expect 30 "error \[rank 0 of 2 on $host\]: rank 0 on $host: (all-gather|barrier|maximum) .* [3-9] s"
    ;;
  nccl_error)
    collectives 3 'error 1 100'
    expect 20 "error \[rank 1 of 3 on $host\]: rank 1 on $host: [a-z-]+ failed: remote process exited"
    train 2 'error 1 50'
    expect 20 "error \[rank 1 of 2 on $host\]: rank 1 on $host: [a-z -]+ failed: remote process exited"
    collectives 2 'refuse 1 30'
    expect 20 "error \[rank 1 of 2 on $host\]: rank 1 on $host: ncclAllGather\(.* failed: unhandled"
    ;;
  hanging)
    collectives 2 'hang 1 10'
    expect 30 "error \[rank [01] of 2 on $host\]: rank [01] on $host: all-gather in a group of 2 ranks has not finished after [3-9] s \(parallel.timeout_s\)"
    train 2 'hang 1 60'
    expect 30 "error \[rank [01] of 2 on $host\]: rank [01] on $host: [a-z -]+ in a group of 2 ranks has not finished after [3-9] s \(parallel.timeout_s\)"
    # A deep model: the host may not run ahead until the GPU's queue takes no more. A step has 500 launches
    # behind this gather; a stream here takes 240, CUDA's about 1000, and large models have thousands.
    LN_STREAM_PLACES=240 train 2 'hang 1 60' 12
    expect 30 "error \[rank [01] of 2 on $host\]: rank [01] on $host: [a-z -]+ in a group of 2 ranks has not finished after [3-9] s \(parallel.timeout_s\)"
    collectives 3 'hang 2 900'
    expect 30 'reduce-scatter in a group of 3 ranks has not finished after [3-9] s'
    ;;
  set_up)
    collectives 3 'fail_to_connect 1 0'
    expect 20 "error \[rank 1 of 3 on $host\]: rank 1 on $host: ncclCommInitRankConfig\(.* failed"
    collectives 3 'never_connect 1 0'
    expect 30 'connecting in a group of 3 ranks has not finished after [3-9] s'
    ;;
  *) echo "unknown case $case"; exit 2 ;;
esac
echo "$case: as expected"
