#!/usr/bin/env bash
# Kills one rank of a training run with SIGKILL at random moments, also while a checkpoint is written, and
# resumes: on the same ranks the losses must continue bit for bit, on 1 or 4 ranks to 1e-4 nats.
# Usage: tests/cli/kill_test.sh PROGRAM      KILLS: how many (default 6, 200 with LN_TEST_LONG=1)
set -uo pipefail
program=$(realpath "$1")
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
kills=${KILLS:-$([ -n "${LN_TEST_LONG:-}" ] && echo 200 || echo 6)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
RANDOM=${SEED:-7}
fail() { echo "FAILED: $*"; exit 1; }

for i in $(seq 4000); do echo "line $i of a small text about nothing, $((i * i % 977))"; done > text.txt
cat > config.yaml <<'Y'
model: {dim: 64, heads: 4, ffn_dim: 128, layers: 2, branches: [[64, 1], [256, 4], [512, 3]]}
data: {train: text.txt, cache: cache}
train: {sequence_length: 512, batch_size: 2, steps: 40, evaluate_every: 0}
optimizer: {warmup_steps: 4, learning_rate: 2.0e-3}
checkpoint: {every: 2, keep_last: 2}
run: {log_every: 1000}
Y
run() {  # RANKS FOLDER
  OMP_NUM_THREADS=1 "$source_dir/scripts/mpirun_local.sh" "$1" "$program" train config.yaml run.folder="$2"
}
losses() { sed -nE 's/^\{"step":([0-9]+),"loss":([-0-9.e]+),.*/\1 \2/p' "$1/metrics.jsonl"; }

run 2 whole > whole.log 2>&1 || { cat whole.log; fail "the uninterrupted run"; }
losses whole > whole.losses
[ "$(wc -l < whole.losses)" = 40 ] || fail "the uninterrupted run has $(wc -l < whole.losses) steps"

killed=0 midway=0 worst=0
for round in $(seq "$kills"); do
  folder=run$round
  run 2 "$folder" > "$folder.log" 2>&1 &
  launcher=$!
  # Until the first checkpoint is there, then up to 0.35 s more.
  for _ in $(seq 600); do
    compgen -G "$folder/step-*" > /dev/null && break
    kill -0 $launcher 2> /dev/null || break
    sleep 0.02
  done
  sleep "0.$(printf '%03d' $((RANDOM % 350)))"
  victims=($(pgrep -f "train config.yaml run.folder=$folder\$" | while read -r pid; do
    [ "$(readlink "/proc/$pid/exe" 2> /dev/null)" = "$program" ] && echo "$pid"
  done))
  if [ ${#victims[@]} -gt 0 ]; then
    kill -9 "${victims[$((RANDOM % ${#victims[@]}))]}" 2> /dev/null && killed=$((killed + 1))
  fi
  wait $launcher
  status=$?
  compgen -G "$folder/.tmp-step-*" > /dev/null && midway=$((midway + 1))
  before=$(losses "$folder" | tail -n 1 | cut -d ' ' -f1)
  if [ "$status" = 0 ] && [ "${before:-0}" != 40 ]; then
    fail "round $round: ended early with exit code 0"
  fi
  ranks=$((round % 3 == 0 ? 1 : round % 3 == 1 ? 2 : 4))
  run $ranks "$folder" > "$folder.resume.log" 2>&1 || {
    cat "$folder.resume.log"
    fail "round $round: resume on $ranks ranks"
  }
  losses "$folder" > "$folder.losses"
  [ "$(wc -l < "$folder.losses")" = 40 ] ||
    fail "round $round: $(wc -l < "$folder.losses") steps in metrics.jsonl"
  if [ $ranks = 2 ]; then
    cmp -s whole.losses "$folder.losses" || {
      diff whole.losses "$folder.losses" | head
      fail "round $round: losses differ on the same ranks"
    }
  else
    difference=$(paste -d ' ' whole.losses "$folder.losses" |
      awk '{d = $2 - $4; if (d < 0) d = -d; if (d > m) m = d} END {printf "%.3g", m}')
    awk "BEGIN {exit !($difference <= 1e-4)}" ||
      fail "round $round: losses differ by $difference on $ranks ranks"
    worst=$(awk "BEGIN {print ($difference > $worst) ? $difference : $worst}")
  fi
  rm -rf "$folder"
done
echo "$kills runs, $killed killed ($midway while a checkpoint was written): same ranks bit for bit, other ranks within $worst nats"
[ "$killed" -gt 0 ] || fail "no rank was killed"
