#!/usr/bin/env bash
# A training takes thousands of signals at any place of a step, inside of the library's products too, and goes
# through them unharmed. Usage: many_signals_test.sh LONGNET
set -euo pipefail
longnet=$1
. "$(dirname "$0")/tiny_training.sh"
work=$(mktemp -d)
trap 'kill -KILL "$training" 2> /dev/null || true; rm -rf "$work"' EXIT
training=
cd "$work"
write_tiny_training text.txt tiny.yaml
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
for round in 1 2 3 4 5; do
  "$longnet" train tiny.yaml run.folder="run$round" > "log$round" 2>&1 &
  training=$!
  for _ in $(seq 300); do grep -q 'step 1/' "log$round" && break; sleep 0.05; done
  grep -q 'step 1/' "log$round" || { echo "training did not start:"; cat "log$round"; exit 1; }
  for _ in $(seq 4000); do kill -USR1 "$training" 2> /dev/null || break; done
  kill -TERM "$training" 2> /dev/null || true
  status=0
  wait "$training" || status=$?
  if [ "$status" != 0 ] || ! grep -q 'ended by SIGTERM' "log$round"; then
    echo "round $round ended with $status:"; tail -n 30 "log$round"; exit 1
  fi
done
