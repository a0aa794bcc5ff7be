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
bundle of scripts/gpu_bundle.sh. Needs bash, coreutils, python3 and an NVIDIA driver; compute-sanitizer, mpirun and
nvidia-smi are used where they are found. Parts, each with a time limit of its own (* : must pass):

  kernels*     every kernel against its reference (gpu_test)
  attention*   cudnn, native and plain against each other
  golden*      golden attention and model files
  training*    the golden training trajectory in f32 and bf16, GPU against CPU
  cpu_gpu*     50 steps of a small configuration: losses of the GPU against those of the CPU
  memcheck*    compute-sanitizer on small shapes; skipped where it is not installed (looked for on PATH and in
  racecheck*   $CUDA_HOME and /usr/local/cuda)
  nccl         two ranks against one; with one GPU they share it, which NCCL does not support: reported only.
               With more GPUs each rank has its own
  collectives  bus bandwidth
  bench_attention, step_125m, step_760m, million_tokens   figures, as shares of limits of the same run

  --out FOLDER     logs, report.json and report.txt; default gpu_check-DATE
  --limit SECONDS  of everything together (570)
  --only A,B       these parts only
  --strict         a target that is missed or was not measured also counts: exit code 1

Exit codes: 0 all parts marked * passed or were skipped with a reason; the table says which speed targets were
reached. 1 one of them failed, ran into its limit, or had no time left. 2 bad command line, or the programs do not
start. 69 no GPU.
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
all_parts=,kernels,attention,golden,training,cpu_gpu,memcheck,racecheck,nccl,collectives,bench_attention,step_125m,step_760m,million_tokens,
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
# find_program NAME FOLDER...: on PATH, else in one of the folders; nothing if it is nowhere.
find_program() {
  local name=$1 folder; shift
  command -v "$name" && return
  for folder in "$@"; do
    if [ -x "$folder/$name" ]; then echo "$folder/$name"; return; fi
  done
  return 1
}
cuda_places=("${CUDA_HOME:-/usr/local/cuda}/bin" "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer" /usr/local/cuda/bin)
sanitizer=$(find_program compute-sanitizer "${cuda_places[@]}")
mpirun=$(PATH="$root/bin:$PATH" find_program mpirun)

# --- is there a GPU?

said=$(timeout -k 5 60 "$gpu_test" --gtest_filter=none 2>&1); code=$?
if [ $code = 77 ]; then echo "gpu_check: no GPU: ${said#*no GPU: }"; exit 69; fi
if [ $code != 0 ]; then
  echo "gpu_check: $gpu_test does not start (exit code $code): $(tail -n 1 <<< "$said")" >&2; exit 2
fi
command -v python3 > /dev/null || { echo "gpu_check: python3 is not installed" >&2; exit 2; }

out=${out:-gpu_check-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out/bench" || exit 2
out=$(cd "$out" && pwd)
rm -f "$out"/*.log "$out"/*.tsv "$out"/bench/* "$out"/report.*
started=$(date +%s)
deadline=$((started + limit))
gpus=$(nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit --format=csv,noheader 2> /dev/null)
gpu_count=$(sed -nE 's/^gpu_test: ([0-9]+) GPUs?$/\1/p' <<< "$said"); gpu_count=${gpu_count:-1}
{
  echo "date	$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  echo "host	$(uname -n)"
  echo "gpus	${gpus//$'\n'/; }"
  echo "processor	$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
  echo "commit	$(cat "$root/commit" 2> /dev/null || git -C "$root" describe --always --dirty 2> /dev/null)"
  echo "command	$0 --limit $limit${only:+ --only ${only:1:-1}}"
} > "$out/machine.tsv"
echo "gpu_check: ${gpus:-a GPU}; logs in $out; at most $limit s"

# --- parts

failed=0
# result NAME MUST STATUS SECONDS LIMIT DETAIL; STATUS: passed, failed, timeout, skipped, "not run".
result() {
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >> "$out/parts.tsv"
  printf '%-16s %-8s %4s s   %s\n' "$1" "$3" "$4" "$6"
  if [ "$2" = must ] && [[ $3 =~ ^(failed|timeout|not\ run)$ ]]; then failed=1; fi
}

# part NAME must|report LIMIT COMMAND...: runs it in time, log in NAME.log. The command's last line
# that begins with "detail: " is shown; exit code 75 skips.
part() {
  local name=$1 must=$2 most=$3 left begin code detail status; shift 3
  if [ -n "$only" ] && [[ $only != *,$name,* ]]; then return; fi
  begin=$(date +%s)
  left=$((deadline - begin))
  if [ $left -lt 3 ]; then result "$name" "$must" "not run" 0 "$most" "no time left of $limit s"; return; fi
  [ $most -le $left ] || most=$left
  timeout -k 3 "$most" bash -c '"$@"' part "$@" > "$out/$name.log" 2>&1
  code=$?
  detail=$(sed -n 's/^detail: //p' "$out/$name.log" | tail -n 1)
  case $code in
    0) status=passed ;;
    75) status=skipped ;;
    124|137) status=timeout detail="stopped after $most s${detail:+; $detail}" ;;
    *) status=failed detail=${detail:-"exit code $code, see $name.log: $(tail -n 1 "$out/$name.log" | cut -c 1-160)"} ;;
  esac
  result "$name" "$must" "$status" $(($(date +%s) - begin)) "$most" "$detail"
}

# Parts run in shells of their own under `timeout`: what they use is exported.
export root out longnet gpu_test sanitizer mpirun report gpu_count
export CUDA_MODULE_LOADING=LAZY

# tests FILTER [WRAPPER...]: gpu_test under a wrapper; fails if no test ran.
tests() {
  local filter=$1 log code passed; shift
  log=$(mktemp "$out/tests.XXXXXX")
  "$@" "$gpu_test" --gtest_filter="$filter" --gtest_color=no 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  passed=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) tests?\.$/\1/p' "$log" | tail -n 1)
  failures=$(sed -nE 's/^\[  FAILED  \] ([A-Za-z0-9_./]+)$/\1/p' "$log" | sort -u | tr '\n' ' ')
  summary=$(grep -oE '(ERROR|RACECHECK) SUMMARY: .*' "$log" | tail -n 1)
  skips=$(sed -nE 's/^\[  SKIPPED \] ([0-9]+) tests?.*/, \1 skipped/p' "$log" | tail -n 1)
  rm -f "$log"
  echo "detail: ${passed:-0} tests passed$skips${failures:+, failed: $failures}${summary:+, $summary}"
  [ "$code" = 0 ] && [ "${passed:-0}" -gt 0 ]
}
export -f tests

sanitize() {  # sanitize TOOL FILTER
  if [ -z "$sanitizer" ]; then
    echo "detail: compute-sanitizer is not on PATH, in \$CUDA_HOME/bin or in /usr/local/cuda/bin"; exit 75
  fi
  tests "$2" "$sanitizer" --tool "$1" --target-processes all --error-exitcode 9
}

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
  local name
  for name in cpu.f32 cuda.f32 cuda.bf16; do
    rm -rf "$out/run.$name"
    "$longnet" train "$out/small.yaml" run.backend=${name%.*} run.dtype=${name#*.} run.folder="$out/run.$name" || return 1
    rm -rf "$out/run.$name"/step-*
  done
  python3 "$report" losses "$out/run.cpu.f32" "$out/run.cuda.f32" 2e-3 "$out/run.cuda.bf16" 0.05
}

nccl() {
  if [ -z "$mpirun" ]; then echo "detail: mpirun is not installed"; exit 75; fi
  small_run
  rm -rf "$out/run.nccl" "$out/run.one"
  local settings=(train.steps=10 run.backend=cuda run.dtype=f32) share=''
  if [ "$gpu_count" -lt 2 ]; then share=1; fi
  "$longnet" train "$out/small.yaml" "${settings[@]}" run.folder="$out/run.one" || return 1
  rm -rf "$out/run.one"/step-*
  # Ranks that share a GPU pass for ranks of different hosts.
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
  share=$share "$mpirun" --oversubscribe --bind-to none -n 2 bash -c '
    if [ -n "$share" ]; then
      export LONGNET_SHARE_GPUS=1 NCCL_HOSTID=rank$OMPI_COMM_WORLD_RANK NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1
      export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
    fi
    exec "$@"' rank "$longnet" train "$out/small.yaml" "${settings[@]}" parallel.timeout_s=20 \
    run.folder="$out/run.nccl" || { echo "detail: the run on two ranks${share:+ that share the GPU} ended with an error"; return 1; }
  rm -rf "$out/run.nccl"/step-*
  python3 "$report" losses "$out/run.one" "$out/run.nccl" 1e-3 || return 1
  if [ -n "$share" ]; then echo "detail: two ranks on one GPU give the losses of one rank"; fi
}

collectives() {
  local ranks=() words=()
  if "$longnet" bench collectives --help | grep -q -- --backend; then words=(--backend cuda); fi
  if [ "$gpu_count" -ge 2 ] && [ -n "$mpirun" ]; then ranks=("$mpirun" --oversubscribe --bind-to none -n "$gpu_count"); fi
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
  "${ranks[@]}" "$longnet" bench collectives "${words[@]}" --min-bytes 1048576 --max-bytes 268435456 --growth 16 \
    --repetitions 5 > "$out/bench/collectives.json" || return 1
  echo "detail: ${words[*]:-host memory}, $([ ${#ranks[@]} -gt 0 ] && echo "$gpu_count" || echo 1) rank(s)"
}

# attention D CHOICE POSITION BRANCH TOKENS: one measurement, C = 1024.
attention_figure() {
  local file=$out/bench/attention-d$1-$2-$3-${4/:/-}.json
  if "$longnet" bench attention --backend cuda --head-dim "$1" --heads $((1024 / $1)) --tokens "$5" --branch "$4" \
    --attention "$2" --position "$3" --repetitions 5 > "$file.part" 2> "$file.log"; then
    mv "$file.part" "$file"; measured=$((measured + 1))
  else
    rm -f "$file.part"; missing=$((missing + 1)); echo "D $1, $2, $3, $4: $(tail -n 1 "$file.log")"
  fi
  echo "detail: $measured measured, $missing failed"
}
export -f attention_figure

# What the targets need comes first, should time run out.
bench_attention() {
  local d choice w
  measured=0 missing=0
  for w in 2048 8192 32768 4096 16384; do
    for d in 64 128; do
      for choice in cudnn native; do attention_figure $d $choice none $w:1 32768; done
      case $w in
        2048|8192)  # the same rows in each problem, 4 apart
          for choice in cudnn native; do attention_figure $d $choice none $((4 * w)):4 32768; done
          attention_figure $d cudnn xpos $w:1 32768 ;;
      esac
    done
  done
  [ $missing = 0 ]
}

# step NAME CONFIG STEPS WORDS...: training steps of a configuration on random tokens, and the GPU's memory meanwhile.
step_figure() {
  local name=$1 config=$2 steps=$3 code watcher=''; shift 3
  [ -r "$config" ] || { echo "detail: there is no ${config#"$root"/}"; exit 75; }
  if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 > "$out/bench/$name.memory" 2> /dev/null &
    watcher=$!
  fi
  "$longnet" bench step "$config" --steps "$steps" run.backend=cuda run.dtype=bf16 train.accumulation=1 "$@" \
    > "$out/bench/$name.json.part"
  code=$?
  if [ -n "$watcher" ]; then kill "$watcher"; wait "$watcher" 2> /dev/null; fi
  if [ $code = 0 ]; then mv "$out/bench/$name.json.part" "$out/bench/$name.json"; fi
  python3 "$report" step "$out/bench/$name"
  return $code
}
export -f step_figure
step_125m() { step_figure step_125m "$root/configs/longnet_125m.yaml" 8; }
step_760m() { step_figure step_760m "$root/configs/longnet_760m.yaml" 4 train.recompute="${LN_RECOMPUTE:-none}"; }
million_tokens() { step_figure million_tokens "$root/configs/longnet_1m.yaml" 2; }

golden_filter='AttentionGpu.GoldenFiles:AttentionSimt.GoldenFiles:*GoldenModel*'
kernels() { tests "-AttentionGpu.*:TrainingGpu.*:*Golden*"; }
attention() { tests "AttentionGpu.*-AttentionGpu.GoldenFiles"; }
golden() { tests "$golden_filter"; }
training() { tests "TrainingGpu.*"; }
# Our kernels only: libraries' kernels may race on purpose.
small_filter='Product.*:FillSimt.*:CastSimt.*:ColumnSumSimt.*:CrossEntropySimt.*:EmbeddingSimt.*:LayerNormSimt.*:ActivationSimt.*:OptimizerSimt.FollowsTheReference:AttentionSimt.GoldenFiles:AttentionSimt.PackRoundsOnceToTheChunksType:AttentionNative*Simt.*Sanitizer*:AttentionSdpaSimt.MergeByLogSumExp'
memcheck() { sanitize memcheck "$small_filter:LinearGpu.*:AttentionGpu.GoldenFiles"; }
racecheck() { sanitize racecheck "$small_filter"; }
export golden_filter small_filter
export -f sanitize kernels attention golden training memcheck racecheck cpu_gpu nccl collectives bench_attention \
  step_125m step_760m million_tokens

part kernels must 90 kernels
part attention must 45 attention
part golden must 30 golden
part training must 30 training
part cpu_gpu must 60 cpu_gpu
part memcheck must 60 memcheck
part racecheck must 60 racecheck
part bench_attention report 150 bench_attention
part step_125m report 35 step_125m
part step_760m report 45 step_760m
part million_tokens report 45 million_tokens
part nccl "$([ "$gpu_count" -ge 2 ] && echo must || echo report)" 40 nccl
part collectives report 20 collectives

echo
python3 "$report" table "$out" $strict | tee "$out/report.txt"
missed=${PIPESTATUS[0]}
echo "gpu_check: $(($(date +%s) - started)) s; report in $out/report.json and report.txt"
[ "$failed" = 0 ] && [ "$missed" = 0 ]
