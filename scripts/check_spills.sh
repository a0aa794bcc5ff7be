#!/usr/bin/env bash
# Compiles every kernel file with nvcc for sm_80 and sm_90a, keeps what ptxas says of registers, stack
# and spills in bench/results/ptxas.txt, and fails where a kernel spills registers to local memory.
#   scripts/check_spills.sh [FILE.cu ...]     default: every src/**/*.cu; NVCC=... names the compiler
set -euo pipefail
cd "$(dirname "$0")/.."
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [ ! -x "$nvcc" ]; then
  echo "check_spills: no nvcc (looked at $nvcc); set NVCC" >&2
  exit 1
fi
if [ $# -gt 0 ]; then files=("$@"); else mapfile -t files < <(find src -name '*.cu' | sort); fi
report=bench/results/ptxas.txt
mkdir -p "$(dirname "$report")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  "$nvcc" --version | tail -n 2 | head -n 1
  echo "columns: file, target, registers, stack bytes, spill store bytes, spill load bytes, kernel"
} > "$work/report"
for file in "${files[@]}"; do
  for target in 80 90a; do
    if ! "$nvcc" -std=c++20 -O3 -lineinfo -gencode="arch=compute_$target,code=sm_$target" -Xptxas -v \
        -Isrc -c "$file" -o "$work/object.o" > "$work/log" 2>&1; then
      grep -E 'error|fatal' "$work/log" >&2 || cat "$work/log" >&2
      echo "check_spills: $file does not compile for sm_$target" >&2
      exit 1
    fi
    awk -v file="$(basename "$file")" -v target="sm_$target" '
      /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2] }
      /bytes spill stores/ { stack = $1; stores = $5; loads = $9 }
      /Used [0-9]+ registers/ && kernel != "" {
        for (i = 1; i <= NF; ++i) if ($i == "Used") registers = $(i + 1)
        print file, target, registers, stack, stores, loads, kernel
        kernel = ""
      }' "$work/log" > "$work/lines"
    if [ ! -s "$work/lines" ]; then
      echo "check_spills: ptxas names no kernel of $file for sm_$target" >&2
      exit 1
    fi
    # Names without the file hash of anonymous namespaces, which differs from build to build.
    { c++filt < "$work/lines" 2> /dev/null || cat "$work/lines"; } |
      sed -E 's/longnet::cuda:://g; s/\(anonymous namespace\):://g; s/_GLOBAL__N__[0-9a-z_]*:://g; s/\(.*//' \
      >> "$work/report"
  done
done
cp "$work/report" "$report"
if ! awk 'NR > 2 && ($5 > 0 || $6 > 0) { print "check_spills: " $0; bad = 1 } END { exit bad }' "$report" >&2; then
  exit 1
fi
echo "check_spills: $(($(wc -l < "$report") - 2)) kernels of ${#files[@]} files, none spills; $report"
