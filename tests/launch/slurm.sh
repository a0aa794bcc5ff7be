#!/usr/bin/env bash
# scripts/slurm/train.sbatch on a real Slurm of one node, started here in a temporary folder: refused input, a
# run with the losses of mpirun bit for bit, save at SIGUSR1, the time limit's signal with requeue and
# resume in a second life, and the save at scancel.
# Usage: tests/launch/slurm.sh PROGRAM    Installs slurm-wlm and munge where they are missing. Exits 77 where
# that cannot be done. About three minutes, most of it the time limit.
set -uo pipefail
program=$(realpath "$1")
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
source "$source_dir/tests/launch/common.sh"
log=
[ "$(id -u)" = 0 ] || skip "starting Slurm's daemons needs root"
missing=()
for tool in slurmctld:slurm-wlm slurmd:slurm-wlm munged:munge; do
  command -v "${tool%%:*}" > /dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get > /dev/null || skip "no ${missing[*]} and no apt-get here"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } > /dev/null 2>&1 ||
    skip "cannot install ${missing[*]}"
fi
work=$(mktemp -d)
chmod 755 "$work"
daemons=()
cleanup() {
  local pid
  scancel --quiet --user=root > /dev/null 2>&1
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2> /dev/null; done
  for pid in "${daemons[@]}"; do wait "$pid" 2> /dev/null; done
  # Step daemons outlive slurmd on purpose; these are the ones of this folder's job files.
  pgrep -f "$work" | grep -v -x $$ | xargs -r kill -9 2> /dev/null
  rm -rf "$work"
}
trap cleanup EXIT

# Munge and Slurm with keys, sockets, ports and folders of their own, beside any that may run here.
install -d -o munge -g munge -m 755 "$work/munge"
head -c 1024 /dev/urandom > "$work/munge/key"
chown munge:munge "$work/munge/key"; chmod 400 "$work/munge/key"
setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --force --key-file="$work/munge/key" \
  --socket="$work/munge/socket" --pid-file="$work/munge/pid" --log-file="$work/munge/log" \
  --seed-file="$work/munge/seed" > "$work/munged.log" 2>&1 &
daemons+=($!)
host=$(hostname -s)
base=$((20000 + $$ % 20000))
mkdir -p "$work/state" "$work/spool"
cat > "$work/slurm.conf" <<C
ClusterName=longnet
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
SlurmctldPort=$base
SlurmdPort=$((base + 1))
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=20
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=2
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
C
export SLURM_CONF=$work/slurm.conf
# Root may start MPI programs in this test.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
munge_up() { [ -S "$work/munge/socket" ]; }
wait_for 90 munge_up || { log=$work/munged.log; fail "munged does not start"; }
slurmctld -D > "$work/slurmctld.out" 2>&1 & daemons+=($!)
slurmd -D > "$work/slurmd.out" 2>&1 & daemons+=($!)
node_up() { sinfo -h -o %T 2> /dev/null | grep -q -x idle; }
wait_for 60 node_up || { log=$work/slurmd.log; tail -n 10 "$work"/slurmctld.log; fail "the node does not come up"; }
echo "Slurm $(sinfo --version | cut -d ' ' -f2) on $host, one node of 2 CPUs"

cd "$work"
tiny_run "$work"
job="$source_dir/scripts/slurm/train.sbatch"
export LN_PROGRAM=$program
submit() { sbatch --parsable --ntasks-per-node=2 --cpus-per-task=1 "$@"; }
state() { scontrol show job "$1" | sed -nE 's/.*JobState=([A-Z]+).*/\1/p'; }
is() { [ "$(state "$1")" = "$2" ]; }
stuck() { log=$work/slurmctld.log; scontrol show job "$1"; fail "job $1 is $(state "$1"), wanted $2"; }
steps_in() { [ -s "$1/metrics.jsonl" ] && [ "$(losses "$1" | wc -l)" -ge "$2" ]; }

# Refusals. Without sbatch, without a configuration, without a program.
bash "$job" tiny.yaml 2> refused.log; code=$?
[ $code = 64 ] && grep -q 'not in a Slurm job' refused.log || { log=refused.log; fail "outside a job: exit code $code"; }
for wrong in "usage:" "configuration nosuch.yaml:nosuch.yaml"; do
  number=$(submit --output=refused.log "$job" ${wrong##*:}) || fail "sbatch"
  wait_for 60 is "$number" FAILED || stuck "$number" FAILED
  scontrol show job "$number" | grep -q 'ExitCode=64:0' && grep -q "${wrong%%:*}" refused.log ||
    { log=refused.log; fail "refusal \"$wrong\""; }
  rm -f refused.log
done

number=$(submit --output=error.log "$job" tiny.yaml model.hedas=3) || fail "sbatch"
wait_for 90 is "$number" FAILED || stuck "$number" FAILED
log=error.log
scontrol show job "$number" | grep -q 'ExitCode=1:0' && grep -q '^error .*hedas' error.log || fail "an error of the ranks"
echo "wrong input is refused; an error of the ranks ends the job with exit code 1"

# A whole run. mpirun on this machine must give the same losses.
log=$work/whole.log
number=$(submit --wait --output=whole.log "$job" tiny.yaml run.folder=whole) || fail "the job failed"
OMP_NUM_THREADS=1 "$source_dir/scripts/mpirun_local.sh" 2 "$program" train tiny.yaml run.folder=direct \
  > direct.log 2>&1 || { log=direct.log; fail "mpirun"; }
losses whole > whole.losses; losses direct > direct.losses
consecutive whole.losses && [ "$(wc -l < whole.losses)" = 12 ] && cmp -s whole.losses direct.losses ||
  fail "losses differ from those of mpirun"
grep -q ': 2 ranks on 1 nodes' whole.log || fail "not 2 ranks"
echo "job $number: COMPLETED, 12 steps on 2 ranks, last loss $(tail -n 1 whole.losses | cut -d ' ' -f2), all equal to mpirun's"

# A long run. SIGUSR1 to the ranks saves and goes on; then the time limit's signal.
log=$work/long.log
settings=(run.folder=long run.log_every=100000)
number=$(submit --time=2 --signal=B:USR1@30 --output=long.log "$job" tiny.yaml train.steps=10000000 "${settings[@]}") ||
  fail "sbatch"
started=$SECONDS
wait_for 90 steps_in long 3 || fail "no third step"
scancel --signal=USR1 "$number"
wait_for 90 compgen -G 'long/step-*' > /dev/null || fail "no checkpoint after SIGUSR1"
is "$number" RUNNING || fail "the job is $(state "$number") after SIGUSR1"
first=$(ls long | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tail -n 1)
echo "job $number: SIGUSR1 to its ranks saved step $first, the job goes on"
wait_for 180 is "$number" PENDING || fail "not requeued at the time limit: $(state "$number")"
grep -q 'the same command continues from here' long.log || fail "the ranks did not end by themselves"
second=$(ls long | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tail -n 1)
[ "$second" -gt "$first" ] || fail "no later checkpoint at the time limit"
echo "job $number: time limit's SIGUSR1 after $((SECONDS - started)) s saved step $second, the job is queued again"
# Slurm holds a requeued job for about two minutes.
scontrol update JobId="$number" TimeLimit=5 StartTime=now
resumed() { grep -q "resumed from .* at step $second" long.log; }
wait_for 150 resumed || fail "no resume from step $second"
wait_for 90 steps_in long $((second + 20)) || fail "no steps after the resume"
grep -q "job $number, life 2" long.log || fail "not a second life"
scancel "$number"
wait_for 90 is "$number" CANCELLED || fail "scancel: $(state "$number")"
stopped() { [ "$(grep -c 'the same command continues from here' long.log)" = 2 ]; }
wait_for 90 stopped || fail "scancel: the ranks did not save and end"
third=$(ls long | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tail -n 1)
losses long > long.losses
consecutive long.losses && [ "$(wc -l < long.losses)" = "$third" ] || fail "steps are missing or repeated"
echo "job $number: second life resumed at step $second; scancel saved step $third"

# One uninterrupted run of the same length must give the same losses.
log=$work/direct.log
OMP_NUM_THREADS=1 "$source_dir/scripts/mpirun_local.sh" 2 "$program" train tiny.yaml run.folder=straight \
  train.steps="$third" run.log_every=100000 > direct.log 2>&1 || fail "mpirun"
losses straight > straight.losses
cmp -s straight.losses long.losses || { diff straight.losses long.losses | head -n 4; fail "losses differ"; }
echo "its $third losses over both lives equal an uninterrupted run's"
echo PASSED
