# Sourced by the launch tests: a temporary folder $work, a tiny run, its losses, and how to fail or skip.
# Wants $program (path of longnet) and $source_dir (the tree) set.

skip() { echo "SKIPPED: $*"; exit 77; }
fail() {
  echo "FAILED: $*"
  if [ -n "${1:-}" ] && [ -n "${log:-}" ] && [ -s "$log" ]; then tail -n 25 "$log"; fi
  exit 1
}

# tiny_run FOLDER: text.txt and tiny.yaml, a byte model whose branches reach over ranks. The schedule is
# constant, so a step's loss does not depend on how many steps are to come.
tiny_run() {
  local i
  for i in $(seq 2000); do echo "line $i of a small text about nothing, $((i * i % 977))"; done > "$1/text.txt"
  cat > "$1/tiny.yaml" <<'Y'
model: {dim: 32, heads: 4, ffn_dim: 64, layers: 2, branches: [[32, 1], [128, 4], [256, 3]]}
data: {train: text.txt, cache: cache}
train: {sequence_length: 256, batch_size: 2, steps: 12, evaluate_every: 0}
optimizer: {warmup_steps: 4, learning_rate: 2.0e-3, schedule: constant}
checkpoint: {every: 0, keep_last: 2}
run: {progress: "off"}
Y
}

# losses FOLDER: "step loss" per step, as the run wrote them, all digits.
losses() { sed -nE 's/^\{"step":([0-9]+),"loss":([-0-9.e]+),.*/\1 \2/p' "$1/metrics.jsonl"; }

# consecutive FILE: whether a losses file counts 1, 2, 3, ... without a gap or a repetition.
consecutive() { awk '$1 != NR {exit 1} END {exit NR == 0}' "$1"; }

# wait_for SECONDS COMMAND...: until the command succeeds, trying five times a second.
wait_for() {
  local tries=$(( $1 * 5 )); shift
  while [ "$tries" -gt 0 ]; do
    if "$@"; then return 0; fi
    sleep 0.2
    tries=$((tries - 1))
  done
  return 1
}
