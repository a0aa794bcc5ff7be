#!/usr/bin/env bash
# The logic of scripts/gpu_check.sh and gpu_report.py with pretended programs: no GPU, all well, a failing part, a
# suite that hangs or crashes, an error that spoils all that follows in its process, missed targets, no sanitizer or one
# that does not work, no python3, missing libraries, no time, bad words; and whether the tests that the script names
# are in the sources. A minute at most.
set -uo pipefail
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
complain() { echo "FAILED: $*"; echo "$*" >> "$work/failures"; }  # groups are subshells

# The tree that the script sees: its scripts and configurations, no programs.
mkdir -p "$work/tree/scripts" "$work/tree/configs" "$work/tree/bin"
cp "$source_dir"/scripts/gpu_{check.sh,places.sh,report.py} "$work/tree/scripts/"
for name in longnet_125m longnet_760m longnet_1m; do echo "model: {}" > "$work/tree/configs/$name.yaml"; done

# What gpu_test would list: the tests of its sources (tests/gpu/CMakeLists.txt).
sed -nE 's/^TEST(_F)?\((\w+), (\w+)\).*/\2.\n  \3/p; s/^TEST_P\((\w+), (\w+)\).*/All\/\1.\n  \2\/case  # GetParam() = 1/p' \
  "$source_dir"/tests/gpu/*.cpp "$source_dir"/tests/simt/*_test.cpp > "$work/tests"
[ "$(grep -c '^  ' "$work/tests")" -gt 50 ] || complain "only $(grep -c '^  ' "$work/tests") tests in the sources"

# gpu_test: GPU=none: no GPU, GPU=lost: does not start; FAIL=, HANG=, CRASH=, SKIP=PATTERN: what becomes of such tests;
# EMPTY=SUITE: its process runs none; LESS=NAME: a test that it lacks.
cat > "$work/tree/bin/gpu_test" <<'S'
#!/usr/bin/env bash
set -f
if [ "${GPU:-}" = none ]; then echo "SKIPPED: no GPU: no NVIDIA driver is loaded"; exit 77; fi
if [ "${GPU:-}" = lost ]; then echo 'longnet-gpu: not found: "libcudnn.so.9"; pip install nvidia-cudnn-cu13'; exit 127; fi
if [ "$1" = --gtest_list_tests ]; then grep -v "${LESS:-nothing}" "$(dirname "$0")/../../tests"; exit; fi
filter=${1#--gtest_filter=}
echo "gpu_test: ${GPUS:-1} GPU$([ "${GPUS:-1}" = 1 ] || echo s)"
echo "gpu_test: cuDNN: 9.14.0"
code=0
for name in ${filter//:/ }; do
  if [ "$name" = none ] || [[ $name == -* ]] || { [ -n "${EMPTY:-}" ] && [[ $name == "$EMPTY".* ]]; }; then continue; fi
  echo "[ RUN      ] $name"
  # shellcheck disable=SC2053
  if [[ $name == ${HANG:-} ]]; then exec sleep 60; fi
  if [[ $name == ${CRASH:-} ]]; then exit 134; fi
  if [[ $name == ${SKIP:-} ]]; then echo "[  SKIPPED ] $name (0 ms)"; continue; fi
  if [[ $name == ${FAIL:-} ]]; then echo "[  FAILED  ] $name (1 ms)"; code=1; continue; fi
  echo "[       OK ] $name (1 ms)"
done
exit $code
S
# longnet: train writes losses, bench writes figures; SLOW: share of cuDNN; STICKY=CASE: an error after which the process
# measures nothing; STOPPED=CASE: it ends there; OFF: what the GPU's losses are off by,
# NATIVE_OFF: those of native attention, RAGGED: two ranks with a branch that does not divide the sequence cannot run.
cat > "$work/tree/bin/longnet" <<'S'
#!PYTHON
import json, os, sys
words = sys.argv[1:]
options = dict(w.split('=', 1) for w in words if '=' in w)
value = lambda name: words[words.index(name) + 1]
if words[0] == 'train':
    folder = options['run.folder']
    off = float(os.environ.get('OFF', '0')) if options.get('run.backend') == 'cuda' else 0
    if options.get('run.attention') == 'native':
        off = float(os.environ.get('NATIVE_OFF', off))
    if 'OMPI_COMM_WORLD_RANK' in os.environ and os.environ.get('RAGGED') and '1500' in options.get('model.branches', ''):
        sys.exit('error: ragged')
    if int(os.environ.get('OMPI_COMM_WORLD_RANK', '0')) > 0:
        assert os.environ['LONGNET_SHARE_GPUS'] == '1' and os.environ['NCCL_HOSTID'] == 'rank1', os.environ
        sys.exit(0)
    os.makedirs(folder, exist_ok=True)
    with open(folder + '/metrics.jsonl', 'w') as file:
        for step in range(int(options.get('train.steps', 50))):
            file.write(json.dumps({'step': step + 1, 'loss': 5.5 - step / 50 + off * step / 50}) + '\n')
elif words[:2] == ['bench', 'attention']:
    share, failed, spoilt = float(os.environ.get('SLOW', '0.9')), 0, False
    for case in (word for before, word in zip(words, words[1:]) if before == '--case'):
        branch, attention, position = case.split(',')
        report = {'attention': attention, 'position': position,
                  'shape': {'head_dim': int(value('--head-dim')), 'branches': [list(map(int, branch.split(':')))]}}
        t = {'median_seconds': 1 / share, 'sdpa_median_seconds': 1.0, 'executed_flops': 5e14, 'host_seconds': 0.1,
             'sdpa_host_seconds': 0.99}
        if attention == 'cudnn':
            t['unmerged_median_seconds'] = 1.01
        spoilt = spoilt or os.environ.get('STICKY') == case
        if os.environ.get('STOPPED') == case:
            print('{"attention": "nat')
            sys.exit('error: stopped')
        if spoilt:
            report['error'] = 'cudaMemcpy failed: an illegal memory access was encountered'
            failed = 1
        elif os.environ.get('NO_NATIVE') and attention == 'native':
            report['error'] = 'run.attention=native: this program has no native kernel'
            failed = 1
        else:
            report.update({'matmul_gflops': 7e5, 'forward': t, 'backward': t})
        print(json.dumps(report), flush=True)
    sys.exit(failed)
elif words[:2] == ['bench', 'step']:
    tokens = 1048576 if '1m' in words[2] else 32768
    print(json.dumps({'tokens_per_step': tokens, 'median_seconds': 0.5, 'tokens_per_second': 2 * tokens,
                      'matmul_peak_gflops': 7e5, 'share_of_matmul_peak': 0.55,
                      'gpu_memory_used_bytes': 75 * 2**30}, indent=2))
elif words[:2] == ['bench', 'collectives']:
    if os.environ['OMPI_COMM_WORLD_RANK'] == '0':
        print(json.dumps({'ranks': 2, 'transport': 'nccl', 'results': [
            {'operation': 'all_reduce', 'bytes': 1, 'bus_gigabytes_per_second': 100.0}]}))
S
# Tools: a sanitizer that says what it found, mpirun that starts two ranks, nvidia-smi of two GPUs, of which others
# use 1 GiB.
mkdir "$work/tools"
cat > "$work/tools/compute-sanitizer" <<'S'
#!/usr/bin/env bash
if [ "${TOOL:-}" = old ]; then echo "========= COMPUTE-SANITIZER"; echo "========= Error: Device not supported. Please refer to the documentation."; exit 255; fi
if [ "${TOOL:-}" = broken ]; then echo "========= Error: Target application terminated before first instrumented API call"; exit 255; fi
[ "$1 $3 $5 $6" = "--tool --target-processes --error-exitcode 9" ] || exit 2
tool=$2; shift 6
"$@" || exit 1
if [ "${FINDS:-}" = "$tool" ]; then echo "========= ERROR SUMMARY: 3 errors"; exit 9; fi
echo "========= ERROR SUMMARY: 0 errors"
S
cat > "$work/tools/mpirun" <<'S'
#!/usr/bin/env bash
while [ "$1" != -n ]; do shift; done
shift 2
OMPI_COMM_WORLD_RANK=0 "$@" || exit 1
OMPI_COMM_WORLD_RANK=1 "$@"
S
cat > "$work/tools/nvidia-smi" <<'S'
#!/usr/bin/env bash
case "$*" in
  *--query-gpu=memory.used*)
    [ "$1" = --id=0 ] || { echo 81000; exit; }
    echo 1024
    [[ $* == *" -lms "* ]] && while :; do echo "${MEMORY:-72704}"; sleep 0.2; done ;;
  *) echo "NVIDIA H100 80GB HBM3, 81559 MiB, 580.0, 1980 MHz, 700.00 W" ;;
esac
S
python=$(python3 -c 'import sys; print(sys.executable)')  # not a wrapper
sed -i "s|^#!PYTHON$|#!$python|" "$work/tree/bin/longnet"
chmod +x "$work"/tree/bin/* "$work"/tools/*

# run CODE NAME [VARIABLE=VALUE ...] -- WORDS...: the script with these words; complains about another exit code.
run() {
  local want=$1 name=$2 settings=(); shift 2
  while [ "$1" != -- ]; do settings+=("$1"); shift; done
  shift
  env CUDA_HOME="$work/none" HOME="$work/home" PATH="$work/tools:$PATH" "${settings[@]}" "$work/tree/scripts/gpu_check.sh" --out "$work/$name" "$@" \
    > "$work/$name.log" 2>&1
  local code=$?
  [ $code = "$want" ] || { complain "$name: exit code $code, not $want"; tail -n 20 "$work/$name.log"; }
}
# says NAME PATTERN: the run's output holds a line like this.
says() { grep -qE -- "$2" "$work/$1.log" || { complain "$1 does not say: $2"; cat "$work/$1.log"; }; }

few=(--only "kernels,attention,training,memcheck")

# Groups of cases; each case has its own folder.
whole() {
  run 69 no_gpu GPU=none --
  says no_gpu '^gpu_check: no GPU: no NVIDIA driver is loaded$'
  [ "$(wc -l < "$work/no_gpu.log")" = 1 ] || complain "no_gpu: more than one line"
  [ ! -e "$work/no_gpu" ] || complain "no_gpu: left files"

  run 0 well SKIP=LinearGpu.* --
  says well '^kernels +passed .* [0-9]+ tests passed, [0-9]+ skipped$'
  says well '^sdpa +passed '
  says well '^cudnn: 9.14.0$'
  says well '^memcheck +passed .*ERROR SUMMARY: 0 errors'
  says well '^nccl +passed .*two ranks on one GPU give the losses of one rank, twice'
  says well '^collectives +passed .*2 ranks that share one GPU$'
  says well '^Collectives, 2 ranks that share one GPU, nccl$'
  says well '^bench_attention +passed .*46 measured, 0 failed$'
  says well '64 +32768 +1 +none +native .* 90\.0 % +9\.0 % +99\.0 %$'
  says well '^cpu_gpu +passed .*50 steps from 5.500 to 4.520 nats; run.cuda.f32 differs by 0 nats.* run.cuda.bf16.native differs by 0 nats'
  says well 'training step of 760M.* 55\.0 % .*met$'
  says well 'GPU memory of the 125M model at 1M tokens +<= 79.00 GiB +70.00 GiB .*met$'
  says well 'cudnn without the merge, D 64.* 99\.0 % .*5 of 5 +2048 4096 8192 16384 32768 +met$'
  says well 'packed rows \(xpos\), D 128.* 90\.0 % .*5 of 5 +2048 4096 8192 16384 32768 +met$'
  says well 'dilated .*, D 128.* 8 of 8 +2048 4096 8192 16384 +met$'
  says well '15 parts: passed; 13 targets: 13 met, 0 missed, 0 not fully measured'
  python3 - "$work/well/report.json" <<'P' || complain "report.json"
import json, sys
report = json.load(open(sys.argv[1]))
assert len(report['parts']) == 15 and not report['failed'] and len(report['targets']) == 13
assert all(t['met'] for t in report['targets']), report['targets']
assert len(report['attention']) == 46 and report['steps']['million_tokens']['gpu_memory_mib'] == 71680
assert report['machine']['gpus'].startswith('NVIDIA H100'), report['machine']
assert report['machine']['cudnn'] == '9.14.0', report['machine']
order = [p['part'] for p in report['parts']]
assert order.index('million_tokens') < order.index('bench_attention') < order.index('nccl'), order
assert order[-1] == 'memcheck_libraries', order
P
  # Nothing but logs and figures is left.
  left=$(cd "$work/well" && echo *)
  [[ $left =~ ^[a-z0-9_.\ ]*$ ]] && [[ $left != *tests.* ]] || complain "left: $left"
}

hangs() {
  run 1 hanging FAIL=CastSimt.* HANG=TrainingGpu.* -- --limit 20 "${few[@]}"
  says hanging '^training +failed .*0 tests passed, ended in TrainingGpu\.[A-Za-z0-9]+, TrainingGpu stopped after [0-9]+ s|^training +timeout .*stopped after [0-9]+ s; 0 tests passed, ended in TrainingGpu'
  says hanging '^memcheck +not run .*no time left'
  # One suite of many that hangs has half the time; the others run.
  run 1 one_hangs FAIL=CastSimt.* HANG=ColumnSumSimt.* -- --limit 12 --only kernels
  says one_hangs '^kernels +failed .*tests passed, failed: CastSimt\..* ended in ColumnSumSimt\.[A-Za-z]+, ColumnSumSimt stopped after [56] s$'
  # Stopped as a whole: failures and the running test still come from the log.
  run 1 two_hang FAIL=CastSimt.* "HANG=[CL]*Simt.*m*" -- --limit 8 --only kernels
  says two_hang '^kernels +timeout .*stopped after [78] s; [0-9]+ tests passed, failed: CastSimt\..* ended in [A-Za-z]+\.'
}

single_parts() {
  run 1 failing FAIL=LinearGpu.* -- "${few[@]}"
  says failing '^kernels +failed .*tests passed, failed: LinearGpu.[A-Z]'
  says failing '^training +passed '
  says failing 'FAILED: kernels;'
  # An error that ends a suite's process leaves the other suites.
  run 1 crashing CRASH=AttentionNativeSimt.* -- --only kernels
  says crashing '^kernels +failed .*tests passed, ended in AttentionNativeSimt\.[A-Za-z]+$'
  grep -q '^\[       OK \] OptimizerSimt' "$work/crashing/kernels.log" || complain "crashing: other suites did not run"
  run 1 empty EMPTY=TrainingGpu -- "${few[@]}"
  says empty '^training +failed .*0 tests passed'
  run 1 renamed LESS=Sanitizer -- "${few[@]}"
  says renamed '^memcheck +failed .*no test matches AttentionNativeSimt.\*Sanitizer\* AttentionNativeBackwardSimt.\*Sanit'
  says renamed '^kernels +passed '
  run 1 found FINDS=memcheck -- "${few[@]}"
  says found '^memcheck +failed .*3 errors'
  run 1 differing OFF=0.01 -- --only cpu_gpu
  says differing '^cpu_gpu +failed .*differs by 0.0098 nats at most \(allowed 2e-3\)'
  run 1 native NATIVE_OFF=0.1 -- --only cpu_gpu
  says native '^cpu_gpu +failed .*run.cuda.bf16.native differs by 0.098 nats at most \(allowed 0.05\)'
  run 0 ragged RAGGED=1 -- --only nccl
  says ragged '^nccl +failed .*two ranks with model.branches=.*1500.*shard_optimizer=true ended with an error'
  run 1 two_gpus GPUS=2 LONGNET_SHARE_GPUS=1 NCCL_HOSTID=rank1 RAGGED=1 -- --only nccl,collectives
  says two_gpus '^collectives +passed .*2 ranks$'
  run 1 broken OFF=nan -- --only cpu_gpu
  says broken '^cpu_gpu +failed .*differs by inf'
  run 2 lost GPU=lost -- --only kernels
  says lost 'gpu_test does not start \(exit code 127\): longnet-gpu: not found: "libcudnn.so.9"; pip install nvidia-cudnn-cu13$'
  python3 - "$work/lost/report.json" <<'P' || complain "lost: report.json"
import json, sys
report = json.load(open(sys.argv[1]))
assert {p['status'] for p in report['parts']} == {'not run'} and 'libcudnn' in report['parts'][0]['detail'], report
P
}

figures() {
  run 0 missed SLOW=0.7 -- --only bench_attention
  says missed 'cudnn with the merge, D 64, .*70.0 % .*MISSED$'
  says missed 'native, D 64, .*70.0 % .*met$'
  run 1 strict SLOW=0.7 -- --only bench_attention --strict
  run 0 no_native NO_NATIVE=1 -- --only bench_attention
  says no_native '^bench_attention +failed .*28 measured, 18 failed, the first: D 64, 2048:1, native, none: run.attention=native: this'
  says no_native 'native, D 128, .*0 of 5 +NOT MEASURED$'
  run 0 stopped STOPPED=32768:1,cudnn,none -- --only bench_attention
  says stopped '^bench_attention +failed .*44 measured, 2 failed, the first: D 64, 32768:1, cudnn, none: the process ended with exit code 1$'
  says stopped 'native, D 128, .*5 of 5 .* met$'
  says stopped 'cudnn with the merge, D 128, .*4 of 5 +2048 4096 8192 16384 +NOT MEASURED$'
  run 0 sticky STICKY=8192:4,native,none -- --only bench_attention
  says sticky '^bench_attention +failed .*44 measured, 2 failed, the first: D 64, 8192:4, native, none: cudaMemcpy failed'
  says sticky 'dilated .*, D 64.* 7 of 8 .*NOT MEASURED$'
  run 0 too_large MEMORY=91024 -- --only million_tokens
  says too_large 'at 1M tokens .*87.89 GiB .*MISSED$'
  run 0 old_tool TOOL=old -- --only kernels,memcheck,racecheck
  says old_tool '^memcheck +skipped .*does not work here: Error: Device not supported'
  says old_tool '^3 parts: passed, 2 skipped: memcheck, racecheck; 13 targets'
  run 0 broken_tool TOOL=broken -- --only racecheck
  says broken_tool '^racecheck +skipped .*does not work here: Error: Target application terminated before first'
}

strictly() {
  # --strict: all of it and well is 0, with a part skipped 1.
  run 0 strict_well -- --strict
  run 1 strict_skipped TOOL=old -- --strict
  says strict_skipped '13 targets: 13 met, 0 missed, 0 not fully measured'
}

bare_machine() {
  # Neither a sanitizer nor mpirun.
  mkdir "$work/bare"
  for tool in awk bash cat cut date dirname env grep head mkdir mv nproc paste rm sed sleep tail tee timeout tr uname; do
    ln -s "$(command -v $tool)" "$work/bare/" || complain "no $tool"
  done
  if command -v git > /dev/null; then ln -s "$(command -v git)" "$work/bare/"; fi  # a copied tree may do without
  # Without python3 everything runs, and losses are compared; no targets.
  run 0 no_python PATH="$work/bare" -- --only kernels,cpu_gpu,memcheck,step_125m,bench_attention
  says no_python '^cpu_gpu +passed .*50 steps from 5.500 to 4.520 nats; run.cuda.f32 differs by 0 nats'
  says no_python '^step_125m +passed .*median_seconds 0.5 share_of_matmul_peak 0.55$'
  says no_python '^bench_attention +passed .*46 measured, 0 failed$'
  says no_python '^5 parts: passed, 1 skipped: memcheck; no targets: python3 is not installed$'
  [ -s "$work/no_python/parts.tsv" ] || complain "no_python: no parts.tsv"
  python3 - "$work/no_python/report.json" <<'P' || { complain "no_python: report.json"; cat "$work/no_python/report.json"; }
import json, sys
report = json.load(open(sys.argv[1]))
assert [p['part'] for p in report['parts']] == ['kernels', 'cpu_gpu', 'memcheck', 'step_125m', 'bench_attention'], report
assert len(report['attention']) == 46 and report['steps']['step_125m']['median_seconds'] == 0.5
assert report['machine']['cudnn'] == '9.14.0' and report['targets'] is None
P
  run 1 no_python_off PATH="$work/bare" OFF=0.01 -- --only cpu_gpu
  says no_python_off '^1 parts: FAILED: cpu_gpu; no targets'
  run 1 no_python_strict PATH="$work/bare" -- --only kernels --strict
  run 2 no_python_lost PATH="$work/bare" GPU=lost --
  python3 -c 'import json, sys; assert json.load(open(sys.argv[1]))["parts"]' "$work/no_python_lost/report.json" || complain "no_python_lost"

  ln -s "$python" "$work/bare/python3"
  run 0 bare PATH="$work/bare" -- --only memcheck,racecheck,nccl,collectives,million_tokens
  says bare 'GPU memory .* 75.00 GiB .*met$'
  # A sanitizer of Python's packages.
  mkdir -p "$work/home/.local/lib/python3.9/site-packages/nvidia/cu13/bin"
  cp "$work/tools/compute-sanitizer" "$work/home/.local/lib/python3.9/site-packages/nvidia/cu13/bin/"
  run 0 packaged PATH="$work/bare" -- --only memcheck
  says packaged '^memcheck +passed .*0 errors'
  says bare '^racecheck +skipped .*compute-sanitizer is not on PATH'
  says bare '^nccl +skipped .*mpirun is not installed'
  says bare '^collectives +skipped .*one rank measures nothing'
}

# Two lanes, half of the time each; not more, or the cases with short limits run out of time on two cores.
{ hangs; single_parts; strictly; } &
{ whole; figures; bare_machine; } &
wait

run 2 bad_word -- --fast
says bad_word 'unknown word --fast; see --help'
run 2 bad_part -- --only kernel
says bad_part 'no part kernel; allowed: kernels,'
run 2 bad_limit -- --limit soon
run 0 help -- --help
says help '69 no GPU'
mv "$work/tree/bin/gpu_test" "$work/gpu_test"
run 2 no_program -- "${few[@]}"
says no_program 'there is no program .*longnet; build it: scripts/build.sh cuda'

[ ! -e "$work/failures" ] || exit 1
echo "gpu_check: all as expected"
