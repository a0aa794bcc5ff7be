#!/usr/bin/env bash
# Includes run one way: core <- kernels <- model <- train <- cli; core <- dist <- train;
# core <- data <- train. `model` and `dist` never include each other. kernels/cuda/launch.h, which itself
# includes core only, is how every layer's kernel files start kernels.
#   scripts/check_layers.sh [SOURCE_FOLDER]     default: src beside this script
# Lists every #include "..." that breaks the rule or names no file of the tree, and fails if there is one.
set -euo pipefail
src=${1:-$(dirname "$0")/../src}
cd "$src"

declare -A may_include=(
  [core]="core"
  [kernels]="core kernels"
  [dist]="core dist"
  [data]="core data"
  [model]="core kernels model"
  [train]="core kernels dist data model train"
  [cli]="core kernels dist data model train cli"
)

failed=0
checked=0
complain() { echo "$1" >&2; failed=1; }

for layer in */; do
  [ -n "${may_include[${layer%/}]:-}" ] || complain "src/$layer: not a layer (${!may_include[*]})"
done

while IFS= read -r hit; do
  file=${hit%%:*}; rest=${hit#*:}; line=${rest%%:*}
  target=$(sed -E 's/^[^"]*"([^"]*)".*/\1/' <<<"${rest#*:}")
  layer=${file%%/*}; wanted=${target%%/*}
  checked=$((checked + 1))
  if [ ! -e "$target" ]; then
    complain "src/$file:$line: includes \"$target\", which is no file under src/ (write the path from src/)"
  elif [[ $file == *.cu && $target == kernels/cuda/launch.h ]]; then
    continue
  elif [[ " ${may_include[$layer]:-} " != *" $wanted "* ]]; then
    complain "src/$file:$line: $layer must not include $wanted (\"$target\"); it may include: ${may_include[$layer]:-nothing}"
  fi
done < <(find . -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \) -printf '%P\0' |
  sort -z | xargs -0 -r grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' || true)

[ "$checked" -gt 0 ] || complain "no #include \"...\" found under $src"
exit $failed
