#!/usr/bin/env bash
# The launchers and scripts refuse wrong arguments with one line and exit code 64, and shared memory that a killed
# job has left is removed, no other. Starts no ranks. Usage: tests/launch/usage_test.sh
set -uo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
complain() { echo "FAILED: $*"; failed=1; }

refused() {  # PATTERN COMMAND...
  local pattern=$1 code lines; shift
  "$@" > "$work/out" 2> "$work/err" < /dev/null; code=$?
  lines=$(wc -l < "$work/err")
  [ "$code" = 64 ] || complain "$*: exit code $code instead of 64"
  [ "$lines" = 1 ] || complain "$*: $lines lines: $(cat "$work/err")"
  grep -qE "$pattern" "$work/err" || complain "$*: $(cat "$work/err")"
  [ ! -s "$work/out" ] || complain "$*: prints $(cat "$work/out")"
}
local_usage='^mpirun_local: usage: scripts/mpirun_local.sh RANKS COMMAND'
refused "$local_usage" scripts/mpirun_local.sh
refused "$local_usage" scripts/mpirun_local.sh 2
for ranks in x 0 -1 2x 1.5 "" 99999999; do
  refused "^mpirun_local: RANKS is \"$ranks\"; give a number" scripts/mpirun_local.sh "$ranks" true
done
refused '^mpirun_local: COMMAND is "no/program"' scripts/mpirun_local.sh 1 no/program
refused '^launch_mpirun: usage: ' scripts/launch_mpirun.sh
refused '^build: .*usage: ' scripts/build.sh
refused '^train.sbatch: ' bash scripts/slurm/train.sbatch
for script in quickstart test test_long data_enwik8 data_gcide data_linux_source; do
  refused "^$script: takes no arguments; usage: scripts/$script.sh" "scripts/$script.sh" word
done

# Shared memory: old and mapped by nobody goes; young, mapped, another user's and anything else stays.
mine=$(hostname).$(id -u)
mkdir "$work/shm"
for name in "vader_segment.$mine.1.0" "sm_segment.$mine.1.1" "vader_segment.$mine.2.0" "vader_segment.other.$(id -u).1.0" \
  "vader_segment.$(hostname).99.1.0" "results.$mine"; do
  truncate -s 8192 "$work/shm/$name"
  touch -d '10 minutes ago' "$work/shm/$name"
done
truncate -s 8192 "$work/shm/vader_segment.$mine.3.0"
if command -v python3 > /dev/null; then
  python3 -c 'import mmap, sys, time
f = open(sys.argv[1], "r+b"); m = mmap.mmap(f.fileno(), 8192); open(sys.argv[2], "w"); time.sleep(60)' \
    "$work/shm/vader_segment.$mine.2.0" "$work/mapped" &
  mapper=$!
  for _ in $(seq 100); do [ ! -e "$work/mapped" ] || break; sleep 0.1; done
else
  rm "$work/shm/vader_segment.$mine.2.0"
fi
source scripts/mpirun_settings.sh
before=$(ls "$work/shm")
remove_stale_segments "$work/shm" 2> "$work/err"
grep -q 'removed 2 segments of shared memory' "$work/err" || complain "stale segments: $(cat "$work/err")"
wanted=$(grep -vE "^(vader|sm)_segment.$mine.1" <<< "$before")
[ "$(ls "$work/shm")" = "$wanted" ] || complain "left in shared memory: $(ls "$work/shm")"
[ -z "${mapper:-}" ] || kill "$mapper"
[ $failed = 1 ] || echo "launchers: as expected"
exit $failed
