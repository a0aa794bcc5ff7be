#!/usr/bin/env bash
# Configures and builds a preset. Usage: scripts/build.sh PRESET [CMAKE_OPTION ...], PRESET: cpu,
# cpu-sanitize or cuda. LN_TARGETS="a b" builds these targets only. Quiet unless something fails.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1; shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { cmake --preset "$preset" "$@" && cmake --build --preset "$preset" ${LN_TARGETS:+--target $LN_TARGETS}; } > "$log" 2>&1; then
  echo "build: preset $preset failed:" >&2
  grep -E -A 12 'error|FAILED|Error' "$log" | head -60 >&2
  exit 1
fi
echo "build: preset $preset is up to date"
