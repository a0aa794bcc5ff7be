# Sourced by tests of the program. write_tiny_training TEXT CONFIG: a text of 200 lines, and the
# configuration of a training on it that goes on until it is ended; steps take milliseconds.
write_tiny_training() {
  for _ in $(seq 200); do echo "the cat sat on the mat and the dog lay by the log."; done > "$1"
  cat > "$2" << YAML
model: {dim: 32, layers: 2, heads: 4, ffn_dim: 64, branches: [[16, 1], [128, 4]]}
data: {train: $1, cache: cache}
train: {sequence_length: 128, batch_size: 2, steps: 1000000, evaluate_every: 0}
optimizer: {warmup_steps: 1}
checkpoint: {every: 0}
run: {folder: run, progress: "off"}
YAML
}
