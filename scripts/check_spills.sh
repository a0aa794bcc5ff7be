#!/usr/bin/env bash
# Compiles every kernel file with nvcc for sm_80 and sm_90a, keeps what ptxas says of registers, stack
# and spills in bench/results/ptxas.txt, and fails where a kernel spills registers to local memory.
#   scripts/check_spills.sh              every src/**/*.cu that has changed since the report was made
#   scripts/check_spills.sh FILE.cu ...  these files, changed or not; the report keeps the others' lines
#   scripts/check_spills.sh --report     no compiler: whether the report is that of this tree, and is good
# The report holds a hash of each file and of the headers it includes, comments and spaces aside.
# NVCC=... names the compiler, JOBS=n compiles n at a time (default 2).
set -euo pipefail
cd "$(dirname "$0")/.."
report=bench/results/ptxas.txt
targets=(80 90a)
flags=(-std=c++20 -O3 -lineinfo -Xptxas -v)
columns="columns: file, target, registers, stack bytes, spill store bytes, spill load bytes, kernel"

# hash_of FILE: of the file and of the project's headers that it includes, directly or not. Those of
# core/ are left out: they hold no device code, and change often.
hash_of() {
  awk -v first="$1" '
    function visit(path,   line, part) {
      if (path in seen) return
      seen[path] = 1
      while ((getline line < path) > 0) {
        if (line ~ /^#include "/) {
          split(line, part, "\"")
          if (part[2] !~ /^core\//) visit("src/" part[2])
        }
        sub(/\/\/.*/, "", line)
        gsub(/[ \t]/, "", line)
        if (line != "") text[path] = text[path] line "\n"
      }
      close(path)
      if (path in text) printf "%s", text[path]
    }
    BEGIN { visit(first) }' | sha256sum | cut -c 1-16
}

# lines_of FILE: what the report says of it; the first line is "source FILE HASH".
lines_of() {
  awk -v file="$1" '/^source / { mine = $2 == file } mine' "$report" 2> /dev/null || true
}

# check_lines: the report is free of spills; prints the registers of each kernel.
check_lines() {
  if ! awk '$2 ~ /^sm_/ && ($5 > 0 || $6 > 0) { print "check_spills: spills: " $0; bad = 1 }
            END { exit bad }' "$report" >&2; then
    return 1
  fi
  awk '
    function flush(   i) {
      for (i = 1; i <= count; ++i) printf "  %-44s registers:%s\n", order[i], registers[order[i]]
      split("", registers); count = 0
    }
    /^source / { flush(); print $2 }
    $2 ~ /^sm_/ {
      kernel = $7; for (i = 8; i <= NF; ++i) kernel = kernel " " $i
      if (!(kernel in registers)) order[++count] = kernel
      registers[kernel] = registers[kernel] " " $2 " " $3
    }
    END { flush() }' "$report"
}

# check_report: one line per file of the tree and per file of the report that do not fit.
check_report() {
  local bad=0 file target said
  if [ ! -r "$report" ]; then echo "check_spills: there is no $report" >&2; return 1; fi
  if [ "$(sed -n 2p "$report")" != "flags: ${flags[*]}" ] || [ "$(sed -n 3p "$report")" != "$columns" ]; then
    echo "check_spills: $report was made with other flags or columns" >&2; return 1
  fi
  for file in "${files[@]}"; do
    said=$(lines_of "$file")
    if [ -z "$said" ]; then
      echo "check_spills: $file is not in $report" >&2; bad=1; continue
    fi
    if [ "$(head -n 1 <<< "$said")" != "source $file $(hash_of "$file")" ]; then
      echo "check_spills: $file or a header of it has changed since $report was made" >&2; bad=1
    fi
    for target in "${targets[@]}"; do
      grep -q "^[^ ]* sm_$target " <<< "$said" ||
        { echo "check_spills: $report has no kernel of $file for sm_$target" >&2; bad=1; }
    done
  done
  while read -r file; do
    [ -f "$file" ] || { echo "check_spills: $report has $file, which is gone" >&2; bad=1; }
  done < <(sed -nE 's/^source ([^ ]*) .*/\1/p' "$report")
  return $bad
}

mapfile -t files < <(find src -name '*.cu' | sort)
if [ "${1:-}" = --report ]; then
  if ! check_report; then
    echo "check_spills: make it anew with scripts/check_spills.sh, where there is an nvcc" >&2
    exit 1
  fi
  check_lines || exit 1
  echo "check_spills: $(grep -c '^[^ ]* sm_' "$report") kernels of ${#files[@]} files, none spills"
  exit 0
fi

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
# compile FILE TARGET LINES: what ptxas says of each kernel of the file, into the file LINES.
compile() {
  local file=$1 target=$2 lines=$3
  if ! "$nvcc" "${flags[@]}" -gencode="arch=compute_$target,code=sm_$target" -Isrc -c "$file" \
      -o "$lines.o" > "$lines.log" 2>&1; then
    { grep -E 'error|fatal' "$lines.log" || cat "$lines.log"; } >&2
    echo "check_spills: $file does not compile for sm_$target" >&2
    return 1
  fi
  awk -v file="$(basename "$file")" -v target="sm_$target" '
    /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2] }
    /bytes spill stores/ { stack = $1; stores = $5; loads = $9 }
    /Used [0-9]+ registers/ && kernel != "" {
      for (i = 1; i <= NF; ++i) if ($i == "Used") registers = $(i + 1)
      print file, target, registers, stack, stores, loads, kernel
      kernel = ""
    }' "$lines.log" > "$lines.raw"
  if [ ! -s "$lines.raw" ]; then
    echo "check_spills: ptxas names no kernel of $file for sm_$target" >&2
    return 1
  fi
  # Names without the file hash of anonymous namespaces, which differs from build to build.
  { c++filt < "$lines.raw" 2> /dev/null || cat "$lines.raw"; } |
    sed -E 's/longnet::cuda:://g; s/\(anonymous namespace\):://g; s/_GLOBAL__N__[0-9a-z_]*:://g; s/\(.*//' \
    > "$lines"
}
if [ "${1:-}" = --compile ]; then  # one of the processes below
  compile "$2" "$3" "$4" || exit 255  # 255: xargs starts no more
  exit 0
fi

if [ ! -x "$nvcc" ]; then
  echo "check_spills: no nvcc (looked at $nvcc); set NVCC" >&2
  exit 1
fi
header=$("$nvcc" --version | tail -n 2 | head -n 1; echo "flags: ${flags[*]}"; echo "$columns")
named=("${@#./}")
for file in "${named[@]}"; do
  printf '%s\n' "${files[@]}" | grep -qxF "$file" || { echo "check_spills: $file is none of src/**/*.cu" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Lines of another compiler or of other flags are no good.
same=no
if [ "$(head -n 3 "$report" 2> /dev/null)" = "$header" ]; then same=yes; fi
kept() { [ $same = no ] || lines_of "$1"; }
into() { echo "$work/$(tr / _ <<< "$1").$2"; }
wanted=()
for file in "${files[@]}"; do
  if [ ${#named[@]} -gt 0 ]; then
    printf '%s\n' "${named[@]}" | grep -qxF "$file" || continue
  elif [ "$(kept "$file" | head -n 1)" = "source $file $(hash_of "$file")" ]; then
    continue
  fi
  wanted+=("$file")
done
# The longest first, so that the last ones, which may run alone, are short.
status=0
[ ${#wanted[@]} = 0 ] || ls -S "${wanted[@]}" | while read -r file; do
  for target in "${targets[@]}"; do printf '%s\n' "$file" "$target" "$(into "$file" "$target")"; done
done | xargs -n 3 -P "${JOBS:-2}" scripts/check_spills.sh --compile || status=1
# What has been compiled is kept even where another file failed.
{
  echo "$header"
  for file in "${files[@]}"; do
    if [ -s "$(into "$file" "${targets[0]}")" ] && [ -s "$(into "$file" "${targets[1]}")" ]; then
      echo "source $file $(hash_of "$file")"
      for target in "${targets[@]}"; do cat "$(into "$file" "$target")"; done
    else
      kept "$file"
    fi
  done
} > "$work/report"
mkdir -p "$(dirname "$report")"
cp "$work/report" "$report"
check_lines || status=1
[ $status = 0 ] || exit 1
echo "check_spills: ${#wanted[@]} of ${#files[@]} files compiled, $(grep -c '^[^ ]* sm_' "$report") kernels, none spills; $report"
