#!/usr/bin/env bash
# Proof and figures on a machine with an NVIDIA GPU, in under ten minutes; needs no network.
#   scripts/gpu_check.sh [--out FOLDER] [--limit SECONDS] [--only PART,PART] [--strict]
# --help says what it does, what it needs, and its exit codes.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'T'
Usage: scripts/gpu_check.sh [--out FOLDER] [--limit SECONDS] [--only PART,PART] [--strict]

Runs from a tree whose preset cuda is built (build-cuda/; LN_BUILD names another folder), or from an unpacked
bundle of scripts/gpu_bundle.sh. Needs bash, coreutils, sed, awk, grep, an NVIDIA driver, and CUDA's libraries:
cuBLASLt, cuDNN, NCCL and NVRTC (1.4 GB) are NOT in a bundle of 60 MiB; where they are missing one line says which,
and what to install. compute-sanitizer, mpirun, nvidia-smi and python3 are used where they are found; without
python3 all parts run, the table beside the targets is left out, and report.json has the parts and the raw figures.
Parts, each with a time limit of its own (* : must pass):

  kernels*     every kernel against its reference (gpu_test; one process per suite, so that an error of the GPU ends
               one suite only)
  sdpa*        our calls of cuDNN against the reference
  attention*   cudnn, native and plain against each other; cudnn must take part if the program was built with it
  golden*      golden attention and model files
  training*    the golden training trajectory in f32 and bf16, GPU against CPU
  cpu_gpu*     50 steps of a small configuration: losses of the GPU, with run.attention=auto and native, against
               those of the CPU
  memcheck*    compute-sanitizer on small shapes of our kernels; skipped, with the reason, where it is not installed
  racecheck*   (PATH, CUDA's places, Python's packages, the bundle) or does not work with this GPU
  step_125m, step_760m, million_tokens, bench_attention   figures, as shares of limits of the same run
  nccl         two ranks against one, also with ragged chunks and parallel.shard_optimizer; with one GPU they share
               it, which NCCL does not support: reported only. With more GPUs each rank has its own: must pass
  collectives  bus bandwidth of all GPUs; with one GPU of two ranks that share it
  memcheck_libraries   linear layers and golden attention with their libraries: reported only

  --out FOLDER     logs, report.json and report.txt; default gpu_check-DATE
  --limit SECONDS  of everything together (570)
  --only A,B       these parts only
  --strict         a part marked * that was skipped, or a target that is missed or was not measured, also counts:
                   exit code 1

Exit codes: 0 all parts marked * passed or were skipped with a reason; the last line says which were skipped, and
the table which speed targets were reached. 1 one of them failed, ran into its limit, or had no time left. 2 bad
command line, or the programs do not start. 69 no GPU.
T
}

out='' limit=570 only='' strict=''
while [ $# -gt 0 ]; do
  case $1 in
    --help|-h) usage; exit 0 ;;
    --out|--limit|--only)
      [ $# -ge 2 ] || { echo "gpu_check: $1 needs a value; see --help" >&2; exit 2; }
      case $1 in --out) out=$2 ;; --limit) limit=$2 ;; --only) only=,$2, ;; esac
      shift ;;
    --strict) strict=--strict ;;
    *) echo "gpu_check: unknown word $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
case $limit in ''|*[!0-9]*) echo "gpu_check: --limit $limit: allowed are whole seconds" >&2; exit 2 ;; esac
all_parts=,kernels,sdpa,attention,golden,training,cpu_gpu,memcheck,racecheck,step_125m,step_760m,million_tokens,bench_attention,nccl,collectives,memcheck_libraries,
for name in ${only//,/ }; do
  [[ $all_parts == *,$name,* ]] || { echo "gpu_check: no part $name; allowed: ${all_parts:1:-1}" >&2; exit 2; }
done

# --- programs: a bundle's, or a tree's

if [ -x "$root/bin/gpu_test" ]; then
  longnet=$root/bin/longnet gpu_test=$root/bin/gpu_test
else
  build=${LN_BUILD:-$root/build-cuda}
  longnet=$build/longnet gpu_test=$build/tests/gpu/gpu_test
fi
longnet=${LN_PROGRAM:-$longnet} gpu_test=${LN_GPU_TEST:-$gpu_test}
report=$root/scripts/gpu_report.py
for program in "$longnet" "$gpu_test"; do
  if [ ! -x "$program" ]; then
    echo "gpu_check: there is no program $program; build it: scripts/build.sh cuda" >&2; exit 2
  fi
done
export LN_SOURCE_DIR=$root
# shellcheck source-path=SCRIPTDIR source=gpu_places.sh
source "$root/scripts/gpu_places.sh"
# find_program NAME FOLDER...: on PATH, else in one of the folders; nothing if it is nowhere.
find_program() {
  local name=$1 folder; shift
  command -v "$name" && return
  for folder in "$@"; do
    if [ -x "$folder/$name" ]; then echo "$folder/$name"; return; fi
  done
  return 1
}
mapfile -t tool_places < <(nvidia_places bin)
sanitizer=$(find_program compute-sanitizer "${tool_places[@]}" "$root/sanitizer")
mpirun=$(PATH="$root/bin:$PATH" find_program mpirun)
python=$(command -v python3)

# --- is there a GPU?

said=$(timeout -k 5 60 "$gpu_test" --gtest_filter=none 2>&1); code=$?
if [ $code = 77 ]; then echo "gpu_check: no GPU: ${said#*no GPU: }"; exit 69; fi

out=${out:-gpu_check-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out/bench" || exit 2
out=$(cd "$out" && pwd)
rm -f "$out"/*.log "$out"/*.tsv "$out"/bench/* "$out"/report.* "$out"/tests.list
started=$(date +%s)
deadline=$((started + limit))
gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit --format=csv,noheader 2> /dev/null)
gpu_count=$(sed -nE 's/^gpu_test: ([0-9]+) GPUs?$/\1/p' <<< "$said"); gpu_count=${gpu_count:-1}
{
  echo "date	$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "host	$(uname -n)"
  echo "gpus	${gpus//$'\n'/; }"
  echo "cudnn	$(sed -n 's/^gpu_test: cuDNN: //p' <<< "$said")"
  echo "processor	$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
  echo "commit	$(cat "$root/commit" 2> /dev/null || git -C "$root" describe --always --dirty 2> /dev/null)"
  echo "command	$0 --limit $limit${only:+ --only ${only:1:-1}}"
} > "$out/machine.tsv"

# --- results

failed=0
# result NAME MUST STATUS SECONDS LIMIT DETAIL; STATUS: passed, failed, timeout, skipped, "not run".
result() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "${@//$'\t'/ }" >> "$out/parts.tsv"
  printf '%-16s %-8s %4s s   %s\n' "$1" "$3" "$4" "$6"
  if [ "$2" = must ]; then
    if [[ $3 =~ ^(failed|timeout|not\ run)$ ]] || { [ "$3" = skipped ] && [ -n "$strict" ]; }; then failed=1; fi
  fi
}

# in_json: standard input as a string.
in_json() { tr '\t\n\r' '   ' | tr -d '\000-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/ *$//' -e 's/^/"/' -e 's/$/"/'; }
joined() { paste -sd ,; }

# report_without_python: report.json of the parts and of what was measured, as it is; no targets.
report_without_python() {
  local key value name must status seconds most detail skipped='' bad='' count=0 line
  {
    echo '{"machine": {'
    while IFS=$'\t' read -r key value; do echo "$(in_json <<< "$key"): $(in_json <<< "$value")"; done < "$out/machine.tsv" | joined
    echo '}, "parts": ['
    while IFS=$'\t' read -r name must status seconds most detail; do
      echo "{\"part\": \"$name\", \"must\": $([ "$must" = must ] && echo true || echo false), \"status\": \"$status\", \"seconds\": $seconds, \"limit\": $most, \"detail\": $(in_json <<< "$detail")}"
    done < "$out/parts.tsv" | joined
    echo '], "attention": ['
    cat "$out"/bench/attention-*.jsonl 2> /dev/null | grep -E '^\{.*\}$' | joined
    echo '], "steps": {'
    for name in step_125m step_760m million_tokens; do
      if [ -s "$out/bench/$name.json" ]; then echo "\"$name\": $(tr '\n' ' ' < "$out/bench/$name.json")"; fi
    done | joined
    echo '}, "targets": null}'
  } > "$out/report.json"
  while IFS=$'\t' read -r name must status seconds most detail; do
    count=$((count + 1))
    [ "$must" = must ] || continue
    case $status in passed) ;; skipped) skipped="$skipped $name" ;; *) bad="$bad $name" ;; esac
  done < "$out/parts.tsv"
  line="$count parts: ${bad:+FAILED:$bad}"
  [ -n "$bad" ] || line="${line}passed"
  # shellcheck disable=SC2086  # counts words
  if [ -n "$skipped" ]; then set -- $skipped; line="$line, $# skipped:$skipped"; fi
  echo "$line; no targets: python3 is not installed" | tee "$out/report.txt"
}

# finish: report.json and report.txt. Exit code 1 where --strict is not content with the figures.
finish() {
  echo
  if [ -z "$python" ]; then report_without_python; [ -z "$strict" ]; return; fi
  "$python" "$report" table "$out" $strict | tee "$out/report.txt"
  return "${PIPESTATUS[0]}"
}

# Without programs that start, the report still says why.
if [ $code != 0 ]; then
  reason=$(tail -n 1 <<< "$said")
  echo "gpu_check: $gpu_test does not start (exit code $code): $reason" >&2
  for name in ${all_parts//,/ }; do result "$name" must "not run" 0 0 "gpu_test does not start: $reason" > /dev/null; done
  finish > /dev/null
  echo "gpu_check: report in $out/report.json" >&2
  exit 2
fi
echo "gpu_check: ${gpus:-a GPU}; logs in $out; at most $limit s"

# --- parts

# part NAME must|report LIMIT COMMAND...: runs it in time, log in NAME.log. The command's last line
# that begins with "detail: " is shown; exit code 75 skips.
part() {
  local name=$1 must=$2 most=$3 left begin code detail status; shift 3
  if [ -n "$only" ] && [[ $only != *,$name,* ]]; then return; fi
  begin=$(date +%s)
  left=$((deadline - begin))
  if [ $left -lt 3 ]; then result "$name" "$must" "not run" 0 "$most" "no time left of $limit s"; return; fi
  [ "$most" -le $left ] || most=$left
  part_log=$out/$name.log part_seconds=$most timeout -k 3 "$most" bash -c '"$@"' part "$@" > "$out/$name.log" 2>&1
  code=$?
  detail=$(sed -n 's/^detail: //p' "$out/$name.log" | tail -n 1)
  case $code in
    0) status=passed ;;
    75) status=skipped ;;
    124|137)
      status=timeout
      if grep -q '^\[ RUN ' "$out/$name.log"; then detail=$(summary "$out/$name.log"); fi
      detail="stopped after $most s${detail:+; $detail}" ;;
    *) status=failed detail=${detail:-"exit code $code, see $name.log: $(tail -n 1 "$out/$name.log" | cut -c 1-160)"} ;;
  esac
  result "$name" "$must" "$status" $(($(date +%s) - begin)) "$most" "$detail"
}

# Parts run in shells of their own under `timeout`: what they use is exported.
export root out longnet gpu_test sanitizer mpirun report python gpu_count
# Numbers of GPUs as nvidia-smi has them.
export CUDA_MODULE_LOADING=LAZY CUDA_DEVICE_ORDER=PCI_BUS_ID

# Suite.Test of all that gpu_test has.
"$gpu_test" --gtest_list_tests 2> /dev/null | awk '/^[^ ]/ { suite = $1 } /^  / { print suite $1 }' > "$out/tests.list"

# in_patterns TEST PATTERNS: GoogleTest's, colons between them.
in_patterns() {
  local pattern patterns
  IFS=: read -ra patterns <<< "$2"
  for pattern in "${patterns[@]}"; do
    # shellcheck disable=SC2053  # patterns of GoogleTest are patterns of bash
    if [[ $1 == $pattern ]]; then return 0; fi
  done
  return 1
}
export -f in_patterns

# unmatched FILTER: those of its patterns that are no test's, negative ones too.
unmatched() {
  local pattern test patterns
  IFS=:- read -ra patterns <<< "$1"
  for pattern in "${patterns[@]}"; do
    [ -n "$pattern" ] || continue
    while read -r test; do
      if in_patterns "$test" "$pattern"; then continue 2; fi
    done < "$out/tests.list"
    echo "$pattern"
  done
}
export -f unmatched

# suites FILTER: of the tests that it matches, one line per suite: "suite test:test".
suites() {
  local wanted=${1%%-*} unwanted='' test
  if [[ $1 == *-* ]]; then unwanted=${1#*-}; fi
  while read -r test; do
    if in_patterns "$test" "${wanted:-*}" && ! in_patterns "$test" "$unwanted"; then echo "${test%.*} $test"; fi
  done < "$out/tests.list" |
    awk '{ if (!($1 in tests)) order[++n] = $1; tests[$1] = tests[$1] ":" $2 }
      END { for (i = 1; i <= n; ++i) print order[i], substr(tests[order[i]], 2) }'
}
export -f suites

# summary LOG: what the output of gpu_test says: how many passed, which failed, where processes ended.
summary() {
  awk '
    function ended() { if (running != "") { lost = lost (lost == "" ? "" : " ") running; running = "" } }
    /^gpu_check: suite / { ended() }
    /^\[ RUN      \] / { running = $4 }
    /^\[       OK \] / { ++passed; running = "" }
    /^\[  SKIPPED \] / && $4 ~ /\./ { if (!(($4) in skip)) { skip[$4]; ++skipped } running = "" }
    /^\[  FAILED  \] / && $4 ~ /\./ {
      sub(/,$/, "", $4)
      if (!($4 in fail)) { fail[$4]; if (++failed <= 8) names = names " " $4 }
      if (running == $4) running = ""
    }
    /^gpu_check: suite .* stopped after / { text = $0; sub(/^gpu_check: suite /, "", text); stops = stops ", " text }
    /(ERROR|RACECHECK) SUMMARY: / { found = $0; sub(/^[^A-Z]*/, "", found) }
    END {
      ended()
      printf "%d tests passed", passed
      if (skipped) printf ", %d skipped", skipped
      if (failed) printf ", failed:%s%s", names, (failed > 8 ? " and " (failed - 8) " more" : "")
      if (lost != "") printf ", ended in %s", lost
      printf "%s", stops
      if (found != "") printf ", %s", found
      print ""
    }' "$1"
}
export -f summary

# tests FILTER [WRAPPER...]: gpu_test under a wrapper; fails if no test ran, or one of the patterns matches none.
# Without a wrapper every suite is a process: after an error of the GPU all that follows in its process fails.
# shellcheck disable=SC2154  # part_log and part_seconds come from part()
tests() {
  local filter=$1 lost code bad=0 suite names list most=$part_seconds; shift
  lost=$(unmatched "$filter" | paste -sd ' ')
  if [ $# -gt 0 ]; then
    "$@" "$gpu_test" --gtest_filter="$filter" --gtest_color=no || bad=1
  else
    mapfile -t list < <(suites "$filter")
    if [ ${#list[@]} -gt 1 ]; then most=$((part_seconds / 2)); fi  # a suite that hangs leaves time for others
    for suite in "${list[@]}"; do
      names=${suite#* } suite=${suite%% *}
      echo "gpu_check: suite $suite"
      timeout --foreground -k 3 "$most" "$gpu_test" --gtest_filter="$names" --gtest_color=no
      code=$?
      case $code in
        0) ;;
        124|137) bad=1; echo "gpu_check: suite $suite stopped after $most s" ;;
        *) bad=1; echo "gpu_check: suite $suite ended with exit code $code" ;;
      esac
    done
  fi 2>&1
  names=$(summary "$part_log")
  echo "detail: $names${lost:+, no test matches $lost}"
  [ $bad = 0 ] && [[ $names != "0 tests"* ]] && [ -z "$lost" ]
}
export -f tests

sanitize() {  # sanitize TOOL FILTER
  local said reason first
  if [ -z "$sanitizer" ]; then
    echo "detail: compute-sanitizer is not on PATH, in CUDA_HOME, /usr/local/cuda*, /opt/nvidia, Python's packages or the bundle"
    exit 75
  fi
  # One small test first: does the tool work with this GPU and driver?
  first=$(suites "$2" | awk 'NR == 1 { sub(/:.*/, "", $2); print $2 }')
  said=$(timeout --foreground -k 3 40 "$sanitizer" --tool "$1" --target-processes all --error-exitcode 9 "$gpu_test" \
    --gtest_filter="$first" --gtest_color=no 2>&1)
  reason=$(grep -iE '^=+ .*(not supported|insufficient permission)' <<< "$said" | head -n 1)
  if [ -z "$reason" ] && ! grep -q '^\[ RUN ' <<< "$said"; then
    reason=$(grep -E '^=+ ' <<< "$said" | tail -n 1)
    reason=${reason:-no test of gpu_test starts under it}
  fi
  if [ -n "$reason" ]; then
    echo "$said"
    echo "detail: compute-sanitizer does not work here: $(sed -E 's/^=+ *//' <<< "$reason" | cut -c 1-160)"
    exit 75
  fi
  tests "$2" "$sanitizer" --tool "$1" --target-processes all --error-exitcode 9
}

# losses FOLDER: "step loss" of a run's metrics.jsonl.
losses() { sed -nE 's/^\{ *"step": *([0-9]+), *"loss": *([^ ,}]+).*/\1 \2/p' "$1/metrics.jsonl"; }
# compare_losses RUN_A RUN_B TOLERANCE [RUN_C TOLERANCE ...]: fails where a loss differs by more, or is missing.
compare_losses() {
  local base=$1 text bad=0 words; shift
  words=$(losses "$base" | awk 'NR == 1 { first = $2 } { last = $2 } END { printf "%d steps from %.3f to %.3f nats", NR, first, last }')
  while [ $# -ge 2 ]; do
    text=$({ losses "$base" | sed 's/^/a /'; losses "$1" | sed 's/^/b /'; } | awk -v name="${1##*/}" -v allowed="$2" '
      function number(x) { return x ~ /^[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$/ }
      $1 == "a" { a[$2] = $3; ++steps }
      $1 == "b" { ++others; b[$2] = $3 }
      END {
        for (step in a) {
          if (!(step in b)) { missing = 1; continue }
          if (!number(a[step]) || !number(b[step])) { infinite = 1; continue }
          d = a[step] - b[step]; if (d < 0) d = -d
          if (d > worst) worst = d
        }
        if (!steps || missing || steps != others) {
          printf "%s: %d steps, not %d", name, others, steps; exit 1
        }
        printf "%s differs by %s nats at most (allowed %s)", name, infinite ? "inf" : sprintf("%.2g", worst), allowed
        exit (infinite || worst > allowed + 0)
      }') || bad=1
    words="$words; $text"
    shift 2
  done
  echo "detail: $words"
  return $bad
}
export -f losses compare_losses

# A small byte model with one attention branch per kind of row: text and configuration in $out.
small_run() {
  [ -s "$out/small.yaml" ] && return
  awk 'BEGIN {for (i = 1; i <= 8000; ++i) print "line " i " of a text about " (i * i) % 977 " things and their " (i * 7) % 31 " kinds"}' > "$out/small.txt"
  cat > "$out/small.yaml" <<Y
model: {dim: 128, heads: 2, ffn_dim: 512, layers: 2, branches: [[256, 1], [1024, 4], [2048, 8]]}
data: {train: $out/small.txt, cache: $out/cache}
train: {sequence_length: 2048, steps: 50, evaluate_every: 0}
optimizer: {warmup_steps: 10, learning_rate: 1.0e-3, schedule: constant}
checkpoint: {every: 0, resume: none}
run: {progress: "off", log_every: 10}
Y
}
export -f small_run

cpu_gpu() {
  small_run
  local name backend type attention
  for name in cpu.f32 cuda.f32 cuda.bf16 cuda.bf16.native; do
    IFS=. read -r backend type attention <<< "$name"
    rm -rf "$out/run.$name"
    "$longnet" train "$out/small.yaml" "run.backend=$backend" "run.dtype=$type" "run.attention=${attention:-auto}" \
      run.folder="$out/run.$name" || { echo "detail: the run $name ended with an error"; return 1; }
    rm -rf "$out/run.$name"/step-*
  done
  compare_losses "$out/run.cpu.f32" "$out/run.cuda.f32" 2e-3 "$out/run.cuda.bf16" 0.05 \
    "$out/run.cuda.bf16.native" 0.05
}

# on_ranks COUNT COMMAND...: under mpirun; on one GPU ranks share it and pass for ranks of different hosts.
on_ranks() {
  local count=$1 share=''; shift
  if [ "$gpu_count" -lt "$count" ]; then share=1; fi
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
  # shellcheck disable=SC2016  # the ranks' own shell expands it
  share=$share "$mpirun" --oversubscribe --bind-to none -n "$count" bash -c '
    if [ -n "$share" ]; then
      export LONGNET_SHARE_GPUS=1 NCCL_HOSTID=rank$OMPI_COMM_WORLD_RANK NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1
      export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
    fi
    exec "$@"' rank "$@"
}
export -f on_ranks

# two_against_one NAME WORDS...: training on one rank and on two gives the same losses.
two_against_one() {
  local name=$1 settings; shift
  settings=("$out/small.yaml" train.steps=10 run.backend=cuda run.dtype=f32 parallel.timeout_s=20 "$@")
  rm -rf "$out/run.one$name" "$out/run.nccl$name"
  "$longnet" train "${settings[@]}" run.folder="$out/run.one$name" || return 1
  on_ranks 2 "$longnet" train "${settings[@]}" run.folder="$out/run.nccl$name" ||
    { echo "detail: the run on two ranks${*:+ with $*} ended with an error"; return 1; }
  rm -rf "$out/run.one$name"/step-* "$out/run.nccl$name"/step-*
  compare_losses "$out/run.one$name" "$out/run.nccl$name" 1e-3
}
export -f two_against_one

nccl() {
  if [ -z "$mpirun" ]; then echo "detail: mpirun is not installed"; exit 75; fi
  small_run
  two_against_one "" && two_against_one .ragged 'model.branches=[[256, 1], [1500, 3]]' parallel.shard_optimizer=true ||
    return 1
  if [ "$gpu_count" -lt 2 ]; then echo "detail: two ranks on one GPU give the losses of one rank, twice"; fi
}

collectives() {
  if [ -z "$mpirun" ]; then echo "detail: mpirun is not installed; one rank measures nothing"; exit 75; fi
  local ranks=$gpu_count most=268435456 shared=''
  if [ "$ranks" -lt 2 ]; then ranks=2 most=16777216 shared=_shared; fi
  on_ranks "$ranks" "$longnet" bench collectives --backend cuda --timeout-s 10 --min-bytes 1048576 --max-bytes $most \
    --growth 16 --repetitions 5 > "$out/bench/collectives$shared.part" || return 1
  mv "$out/bench/collectives$shared.part" "$out/bench/collectives$shared.json"
  echo "detail: $ranks ranks${shared:+ that share one GPU}"
}

# attention_cases NAME D TOKENS CASE...: measurements, C = 1024, in one process. After an error that is no refusal
# the process's GPU may be lost: what failed after it is tried again in a new one.
attention_cases() {
  local name=$1 d=$2 tokens=$3 file case words lines line left next broken code round bad=0 i; shift 3
  file=$out/bench/attention-$name-d$d.jsonl
  left=("$@")
  for round in 1 2 3; do
    words=() next=() broken=''
    for case in "${left[@]}"; do words+=(--case "$case"); done
    timeout --foreground -k 3 100 "$longnet" bench attention --backend cuda --head-dim "$d" --heads $((1024 / d)) \
      --tokens "$tokens" --repetitions 5 "${words[@]}" > "$file.part"
    code=$?
    mapfile -t lines < "$file.part"
    rm -f "$file.part"
    for i in "${!left[@]}"; do
      line=${lines[i]:-} case=${left[i]}
      if [[ $line != \{*\} ]]; then
        line="{\"attention\": \"$(cut -d , -f 2 <<< "$case")\", \"position\": \"${case##*,}\", \"shape\": {\"head_dim\": $d,"
        line+=" \"branches\": [[$(sed 's/,.*//; s/:/, /' <<< "$case")]]}, \"error\": \"the process ended with exit code $code\"}"
      fi
      if [[ $line == *'"error":'* && $line != *run.attention=* ]]; then
        if [ -n "$broken" ] && [ $round -lt 3 ]; then next+=("$case"); continue; fi
        broken=1
      fi
      if [[ $line == *'"error":'* ]]; then bad=1; fi
      echo "$line" >> "$file"
    done
    if [ ${#next[@]} = 0 ]; then break; fi
    left=("${next[@]}")
  done
  say_attention
  return $bad
}
say_attention() {
  if [ -n "$python" ]; then "$python" "$report" attention "$out"; return; fi
  echo "detail: $(cat "$out"/bench/attention-*.jsonl | grep -cv '"error":') measured, $(cat "$out"/bench/attention-*.jsonl | grep -c '"error":') failed"
}
export -f attention_cases say_attention

# The ends of what the targets need come first, should time run out; cuDNN before our own kernels.
bench_attention() {
  local d code=0 w ends=() others=() own=()
  for w in 2048 32768; do ends+=("$w:1,cudnn,none"); done
  for w in 2048 32768; do ends+=("$w:1,native,none"); done
  for w in 8192 4096 16384; do others+=("$w:1,cudnn,none") own+=("$w:1,native,none"); done
  for w in 2048 8192 4096; do  # dilated: as many rows as w has
    others+=("$w:1,cudnn,xpos" "$((4 * w)):4,cudnn,none")
    own+=("$((4 * w)):4,native,none")
  done
  for w in 32768 16384; do others+=("$w:1,cudnn,xpos"); done
  for d in 64 128; do attention_cases ends $d 32768 "${ends[@]}" || code=1; done
  for d in 64 128; do attention_cases others $d 32768 "${others[@]}" "${own[@]}" || code=1; done
  for d in 64 128; do attention_cases long $d 65536 65536:4,cudnn,none 65536:4,native,none || code=1; done
  return $code
}

# step NAME CONFIG STEPS WORDS...: training steps of a configuration on random tokens, and the GPU's memory meanwhile.
step_figure() {
  local name=$1 config=$2 steps=$3 code watcher=''; shift 3
  [ -r "$config" ] || { echo "detail: there is no ${config#"$root"/}"; exit 75; }
  if command -v nvidia-smi > /dev/null; then
    # Of the GPU that one rank takes; the first number is what others use.
    local query=(nvidia-smi "--id=$first_gpu" --query-gpu=memory.used "--format=csv,noheader,nounits")
    "${query[@]}" > "$out/bench/$name.memory" 2> /dev/null
    "${query[@]}" -lms 200 >> "$out/bench/$name.memory" 2> /dev/null &
    watcher=$!
  fi
  "$longnet" bench step "$config" --steps "$steps" run.backend=cuda run.dtype=bf16 train.accumulation=1 "$@" \
    > "$out/bench/$name.json.part"
  code=$?
  if [ -n "$watcher" ]; then kill "$watcher"; wait "$watcher" 2> /dev/null; fi
  if [ $code = 0 ]; then mv "$out/bench/$name.json.part" "$out/bench/$name.json"; fi
  if [ -n "$python" ]; then
    "$python" "$report" step "$out/bench/$name"
  elif [ $code = 0 ]; then
    echo "detail: $(sed -nE 's/^ *"(median_seconds|share_of_matmul_peak)": *([^,]+),?$/\1 \2/p' "$out/bench/$name.json" | paste -sd ' ')"
  fi
  return $code
}
export -f step_figure
step_125m() { step_figure step_125m "$root/configs/longnet_125m.yaml" 8; }
step_760m() { step_figure step_760m "$root/configs/longnet_760m.yaml" 4 train.recompute="${LN_RECOMPUTE:-none}"; }
million_tokens() { step_figure million_tokens "$root/configs/longnet_1m.yaml" 2; }

first_gpu=${CUDA_VISIBLE_DEVICES:-0}
first_gpu=${first_gpu%%,*}
golden_filter='AttentionGpu.GoldenFiles:AttentionSimt.GoldenFiles:*GoldenModel*'
kernels() { tests "-AttentionGpu.*:TrainingGpu.*:*Golden*:AttentionSdpa*"; }
sdpa() { tests "AttentionSdpa*"; }
attention() { tests "AttentionGpu.*-AttentionGpu.GoldenFiles"; }
golden() { tests "$golden_filter"; }
training() { tests "TrainingGpu.*"; }
# Our kernels only: libraries' kernels take long, and may race on purpose.
small_filter='Product.*:FillSimt.*:CastSimt.*:ColumnSumSimt.*:CrossEntropySimt.*:EmbeddingSimt.*:LayerNormSimt.*:ActivationSimt.*:OptimizerSimt.FollowsTheReference:AttentionSimt.GoldenFiles:AttentionSimt.PackRoundsOnceToTheChunksType:AttentionNativeSimt.*Sanitizer*:AttentionNativeBackwardSimt.*Sanitizer*:AttentionSdpaSimt.*Sanitizer*:AttentionSdpaSimt.MergeByLogSumExp'
memcheck() { sanitize memcheck "$small_filter"; }
racecheck() { sanitize racecheck "$small_filter"; }
memcheck_libraries() { sanitize memcheck "LinearGpu.*:AttentionGpu.GoldenFiles"; }
export golden_filter small_filter first_gpu
export -f sanitize kernels sdpa attention golden training memcheck racecheck memcheck_libraries cpu_gpu nccl collectives \
  bench_attention step_125m step_760m million_tokens

part kernels must 90 kernels
part sdpa must 90 sdpa
part attention must 90 attention
part golden must 60 golden
part training must 30 training
part cpu_gpu must 60 cpu_gpu
part memcheck must 90 memcheck
part racecheck must 90 racecheck
part step_125m report 35 step_125m
part step_760m report 45 step_760m
part million_tokens report 45 million_tokens
part bench_attention report 180 bench_attention
part nccl "$([ "$gpu_count" -ge 2 ] && echo must || echo report)" 40 nccl
part collectives report 25 collectives
part memcheck_libraries report 60 memcheck_libraries

rm -f "$out/tests.list"
finish
missed=$?
echo "gpu_check: $(($(date +%s) - started)) s; report in $out/report.json and report.txt"
[ "$failed" = 0 ] && [ "$missed" = 0 ]
