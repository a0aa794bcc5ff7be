#!/usr/bin/env bash
# Stops one rank of a training run with SIGSTOP, in training and inside of MPI's blocking calls: after ten
# seconds a waiting rank names it, at parallel.timeout_s the job ends on all ranks with one error line. A
# rank that comes late but in time does no harm. Usage: tests/cli/stopped_rank_test.sh PROGRAM
set -uo pipefail
program=$(realpath "$1")
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*"; cat log; exit 1; }

. "$source_dir/tests/cli/tiny_training.sh"
write_tiny_training text.txt config.yaml
# The path of the configuration tells these ranks from those of other tests that run at the same time.
# What a rank does before the program: LATE ranks wait, others have a library that stops them.
cat > rank.sh <<'R'
#!/bin/sh
[ "$OMPI_COMM_WORLD_RANK" != "$LN_LATE_RANK" ] || sleep 13
[ "$OMPI_COMM_WORLD_RANK" != "$LN_STOPPED_RANK" ] || export LD_PRELOAD="$LN_STOPPER"
exec "$@"
R
cat > stopper.c <<'C'
#include <mpi.h>
#include <signal.h>
#ifdef AT_END
int MPI_Finalize(void) { raise(SIGSTOP); return PMPI_Finalize(); }
#else
int MPI_Comm_split(MPI_Comm c, int color, int key, MPI_Comm* new) {
  raise(SIGSTOP);
  return PMPI_Comm_split(c, color, key, new);
}
#endif
C
chmod +x rank.sh
export LN_LATE_RANK="" LN_STOPPED_RANK="" LN_STOPPER="" OMP_NUM_THREADS=1
start() {  # RANKS KEY=VALUE...
  local ranks=$1; shift
  rm -rf run
  "$source_dir/scripts/mpirun_local.sh" "$ranks" ./rank.sh "$program" train "$work/config.yaml" "$@" > log 2>&1 &
  launcher=$!
}
expect_end() {  # CODE PATTERN...
  local code=$1 status; shift
  for _ in $(seq 600); do kill -0 $launcher 2> /dev/null || break; sleep 0.1; done
  kill -0 $launcher 2> /dev/null && { kill -KILL $launcher; fail "$case: no end"; }
  wait $launcher; status=$?
  [ "$status" = "$code" ] || fail "$case: exit code $status instead of $code"
  for pattern in "$@"; do grep -qE "$pattern" log || fail "$case: no line like: $pattern"; done
  # Groups that wait for the same rank may each speak before the job ends.
  [ "$(grep -c '^error' log)" -le 2 ] || fail "$case: many error lines"
  [ "$(grep -c 'has waited 1[0-9] s' log)" -le 2 ] || fail "$case: many ranks speak"
  # mpirun may end a moment before the ranks that it has killed, on a busy machine some seconds.
  for _ in $(seq 100); do pgrep -f "^$program train $work/" > /dev/null || break; sleep 0.1; done
  [ -z "$(pgrep -f "^$program train $work/")" ] || fail "$case: a rank is left"
  echo "$case: as expected"
}

for rank in 1 0; do
  case="rank $rank of 3 stopped in training"
  start 3 parallel.timeout_s=13 train.sequence_length=129
  for _ in $(seq 600); do grep -qs 'step 3/' log && break; sleep 0.1; done
  grep -q 'step 3/' log || fail "$case: no step"
  for process in $(pgrep -f "^$program train $work/"); do
    ! tr '\0' '\n' < "/proc/$process/environ" | grep "^OMPI_COMM_WORLD_RANK=$rank$" > /dev/null || kill -STOP "$process"
  done
  expect_end 1 "has waited 1[0-9] s for rank $rank on .*; the job ends after 13 s \(parallel.timeout_s\)" \
    "^error \[rank [012] of 3 on .*has not finished after 1[3-9] s \(parallel.timeout_s\): rank $rank on .* is lost, stopped or busy"
done

case="a late rank"
LN_LATE_RANK=1 start 2 train.steps=3
expect_end 0 "start of MPI has waited 1[0-9] s for another rank of the group; the job ends after 600 s"

if command -v mpicc > /dev/null; then
  mpicc -shared -fPIC -o split.so stopper.c && mpicc -shared -fPIC -DAT_END -o end.so stopper.c || fail "stopper"
  case="stopped before a group is split"
  LN_STOPPED_RANK=1 LN_STOPPER=$work/split.so start 2 parallel.timeout_s=4
  expect_end 1 "^error: rank 0 on .*: splitting a group in a group of 2 ranks has not finished after [4-7] s"
  case="stopped at the end"
  LN_STOPPED_RANK=1 LN_STOPPER=$work/end.so start 2 parallel.timeout_s=4 train.steps=3
  expect_end 1 "^error: rank 0 on .*: end of the job in a group of 2 ranks has not finished after [4-7] s"
fi
