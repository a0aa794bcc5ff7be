#!/usr/bin/env bash
# Configures and builds a preset. Usage: scripts/build.sh PRESET [program] [CMAKE_OPTION ...]
#   PRESET    cpu, cpu-sanitize or cuda
#   program   the program alone: neither tests nor benchmarks, and none of the packages that these need
# LN_TARGETS="a b" builds these targets only. Counts the files on a terminal, elsewhere in a line at times.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { echo "build: $*; usage: scripts/build.sh cpu|cpu-sanitize|cuda [program] [CMAKE_OPTION ...]" >&2; exit 64; }
[ $# -gt 0 ] || usage "no preset is named"
preset=$1; shift
case $preset in
  cpu) folder=build ;;
  cpu-sanitize) folder=build-sanitize ;;
  cuda) folder=build-cuda ;;
  *) usage "\"$preset\" is no preset" ;;
esac
options=(-DLN_TESTS=ON -DLN_BENCH=ON)
if [ "${1:-}" = program ]; then
  shift
  LN_TARGETS=longnet_program
  # A folder with tests keeps them: it may be the one that scripts/test.sh uses.
  if [ -f $folder/build.ninja ] && grep -q '^LN_TESTS:BOOL=ON' $folder/CMakeCache.txt; then
    options=()
  else
    options=(-DLN_TESTS=OFF -DLN_BENCH=OFF)
  fi
fi
for option in "$@"; do [[ $option = -* ]] || usage "\"$option\" is no option of CMake"; done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fail() {
  echo "build: preset $preset failed:" >&2
  grep -E -A 12 'error|FAILED|Error' "$log" | head -60 >&2
  exit 1
}

# count: reads ninja's lines "[DONE/ALL] ..." into the log and shows the numbers: one line that moves on a
# terminal, else a line every 20 seconds.
count() {
  local line next=$SECONDS moves=no shown=no
  if [ -t 1 ]; then moves=yes; fi
  while IFS= read -r line; do
    printf '%s\n' "$line" >> "$log"
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    if [ $moves = yes ]; then
      printf '\rbuild: %d of %d files' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
    elif [ "$SECONDS" -ge "$next" ]; then
      printf 'build: %d of %d files\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
      next=$((SECONDS + 20))
    fi
    shown=yes
  done
  if [ $moves = yes ] && [ $shown = yes ]; then printf '\n'; fi
}

cmake --preset "$preset" "${options[@]}" "$@" > "$log" 2>&1 || fail
what=${LN_TARGETS:-everything}
echo "build: $folder/: ${what/longnet_program/the program} with $(nproc) cores"
# shellcheck disable=SC2086  # LN_TARGETS is a list of words
NINJA_STATUS='[%f/%t] ' cmake --build --preset "$preset" ${LN_TARGETS:+--target $LN_TARGETS} 2>&1 | count || fail
echo "build: preset $preset is up to date"
