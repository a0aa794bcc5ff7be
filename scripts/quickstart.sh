#!/usr/bin/env bash
# From a fresh clone to a trained LongNet: set-up, build, data, a two-rank training run of about two
# minutes on English prose, an evaluation and a sample. Usage: scripts/quickstart.sh
set -euo pipefail
[ $# = 0 ] || { echo "quickstart: takes no arguments; usage: scripts/quickstart.sh" >&2; exit 64; }
cd "$(dirname "$0")/.."
say() { printf '\n== %s\n' "$*"; }
say "1. set-up: installs missing packages"
scripts/setup.sh program
say "2. build (into build/)"
scripts/build.sh cpu program
say "3. data: English prose"
scripts/data_gcide.sh
say "4. training: one sequence split over two ranks"
scripts/mpirun_local.sh 2 build/longnet train configs/quickstart.yaml
checkpoint=$(ls -d runs/quickstart/step-* | tail -n 1)
say "5. evaluation of $checkpoint"
scripts/mpirun_local.sh 2 build/longnet evaluate "$checkpoint" --samples 32
say "6. a sample"
build/longnet generate "$checkpoint" --prompt "The " --tokens 300 --temperature 0.7 --top-k 40
