#!/usr/bin/env bash
# Fuzzes the parsers under address and undefined-behaviour sanitizers: builds tests/fuzz with clang
# (preset "fuzz") and runs every target. Usage: scripts/fuzz.sh [SECONDS_PER_TARGET [TARGET...]]
# Findings are left in build-fuzz/findings; the exit code says whether there are any.
set -uo pipefail
usage="usage: scripts/fuzz.sh [SECONDS_PER_TARGET [TARGET...]]; targets: config gzip safetensors state"
cd "$(dirname "$0")/.."
seconds=${1:-300}
[[ $seconds =~ ^[1-9][0-9]{0,5}$ ]] || { echo "fuzz: '$seconds' is no number of seconds; $usage" >&2; exit 64; }
shift || true
[ $# != 0 ] || set -- config gzip safetensors state
for target in "$@"; do
  [ -e "tests/fuzz/fuzz_$target.cpp" ] || { echo "fuzz: there is no target '$target'; $usage" >&2; exit 64; }
done
command -v clang++ > /dev/null || { echo "fuzz: needs clang++ with libFuzzer (Debian: apt-get install clang)" >&2; exit 1; }
cmake --preset fuzz > /dev/null && cmake --build build-fuzz --target "${@/#/fuzz_}" || exit 1
# Seeds: every configuration of the tree; files of one and two members, of text and of few bytes.
seeds=build-fuzz/seeds findings=build-fuzz/findings
mkdir -p $seeds/{config,gzip,safetensors,state} $findings
cp configs/*.yaml $seeds/config/
printf 'model: {branches: [[8, 1], [16, 2]]}\n%%%%\nmodel.dim=64\ndata.train=[a, "b"]\n' > $seeds/config/words
printf '\0%s' "" > $seeds/gzip/empty
{ printf '\0'; gzip -c configs/base.yaml; } > $seeds/gzip/one
{ printf '\0'; gzip -nc README.md; printf x | gzip -c; head -c 9 /dev/zero; } > $seeds/gzip/two
for kind in 200 129 130 131 140 156 170 220 255; do
  { printf "\\$(printf %o $kind)"; head -c 3000 README.md; } > "$seeds/gzip/packed-$kind"
done
# A header of 128 bytes (octal 200 after an even first byte) and two tensors; a state of format 4 (first byte 3).
{ printf '\200\0\0\0\0\0\0\0'; printf '%-128s' '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1,1],"data_offsets":[8,16]}}'; head -c 16 README.md; } > $seeds/safetensors/two
{ printf '\200\0\0\0\0\0\0\0'; printf '%-128s' '{"__metadata__":{"format":"longnet"},"x":{"dtype":"BF16","shape":[0,3],"data_offsets":[0,0]}}'; } > $seeds/safetensors/empty
{ printf '\3'; echo '{"step":5,"tokens_seen":640,"epoch":1,"next_sample":2,"seed":1,"loss":2.5,"spike":false,"rollbacks":0,"recent_losses":[3.5,3.25],"lineage":[{"checkpoint":"step-00000002","step":2,"id":77}],"training_data":{"files":1,"bytes":100,"hash":"0123456789abcdef"}}'; } > $seeds/state/four
{ printf '\0'; echo '{"step":5,"tokens_seen":640,"epoch":1,"next_sample":2}'; } > $seeds/state/one
status=0
for target in "$@"; do
  "build-fuzz/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -max_len=16384 -timeout=20 \
    -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="$findings/$target-" \
    -dict="tests/fuzz/$target.dict" "$seeds/$target" 2> "build-fuzz/$target.log" || status=1
  grep -E 'stat::number_of_executed|ERROR|SUMMARY|runtime error|^fuzz_|DONE|BINGO' "build-fuzz/$target.log" |
    sed "s/^/$target: /"
done
exit $status
