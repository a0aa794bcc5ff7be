#!/usr/bin/env bash
# scripts/launch_mpirun.sh over two hosts, each a network namespace with a host name of its own, joined by a
# virtual cable: refused input, training on 2 x 1 and 2 x 2 ranks with the losses of one host bit for bit,
# SIGUSR1 to mpirun, a cut cable that must end the job, and the resume on one host afterwards.
# Usage: tests/launch/two_hosts.sh PROGRAM    Exits 77 where namespaces cannot be made. About half a minute on idle cores.
set -uo pipefail
program=$(realpath "$1")
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
source "$source_dir/tests/launch/common.sh"
launch=$source_dir/scripts/launch_mpirun.sh
a=lna$$ b=lnb$$ network=10.77.0.0/24 log=
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
command -v ip > /dev/null || skip "ip (package iproute2) is not installed"
command -v unshare > /dev/null || skip "unshare (package util-linux) is not installed"
work=$(mktemp -d)
cleanup() {
  local host
  for host in $a $b; do
    ip netns pids $host 2> /dev/null | xargs -r kill -9 2> /dev/null
    ip netns del $host 2> /dev/null
  done
  rm -rf "$work"
}
trap cleanup EXIT
ip netns add $a 2> "$work/ip.log" && ip netns add $b 2>> "$work/ip.log" &&
  ip link add v$a netns $a type veth peer name v$b netns $b 2>> "$work/ip.log" ||
  skip "no network namespaces here: $(tail -n 1 "$work/ip.log")"
cd "$work"
place=1
for host in $a $b; do
  ip -n $host link set lo up && ip -n $host addr add 10.77.0.$place/24 dev v$host &&
    ip -n $host link set v$host up || fail "no address for $host"
  place=$((place + 1))
done
# on HOST WORDS...: a command line there, as after a login.
cat > on <<'S'
#!/usr/bin/env bash
host=$1; shift
exec ip netns exec "$host" unshare --uts --ipc bash -c "hostname $host; $*"
S
# What launch_mpirun.sh calls in place of ssh.
cat > agent <<S
#!/usr/bin/env bash
while [[ \$1 == -* ]]; do shift; done
case \$1 in 10.77.0.1) host=$a ;; 10.77.0.2) host=$b ;; *) echo "agent: no host \$1" >&2; exit 1 ;; esac
shift
exec "$work/on" \$host "\$@"
S
chmod +x on agent
tiny_run "$work"
printf '10.77.0.1 slots=1\n10.77.0.2 slots=1  # the other end\n' > hosts1
printf '# two each\n\n10.77.0.1 slots=2\n10.77.0.2 slots=2\n' > hosts2
export OMP_NUM_THREADS=1 LN_NETWORK=$network LN_AGENT=$work/agent LN_LINK_TIMEOUT=5
export OMPI_MCA_mpi_yield_when_idle=1  # both "hosts" share this machine's cores

# Refusals: one line each, exit code 64.
refused() {  # PATTERN ARGUMENTS...
  local pattern=$1 code; shift
  "$launch" "$@" > refused.log 2>&1; code=$?
  [ $code = 64 ] && [ "$(wc -l < refused.log)" = 1 ] && grep -q -e "$pattern" refused.log ||
    { log=refused.log; fail "launch_mpirun.sh $* : exit code $code, wanted 64 and one line with \"$pattern\""; }
}
: > empty; echo "10.77.0.1" > slotless; echo "h slots=0" > zero
printf 'h slots=1\nh slots=1\n' > twice; echo "h slots=2 max_slots=4" > more
refused 'usage'                       hosts1 2
refused 'nosuch: no such file'        nosuch 2 "$program"
refused 'empty names no host'         empty 2 "$program"
refused 'line 1: .*HOST slots=N'      slotless 1 "$program"
refused 'line 1: .*at least 1'        zero 1 "$program"
refused 'line 2: h is already on line 1'      twice 1 "$program"
refused 'max_slots=4.*not understood' more 1 "$program"
refused '5 ranks requested, but hosts2 has 4 slots' hosts2 5 "$program"
refused 'RANKS is "0"'                hosts1 0 "$program"
LN_LINK_TIMEOUT=3 refused 'at least 4' hosts1 2 "$program"

# Training: the same losses as on one host, and every host has its ranks.
./on $a "'$launch' hosts2 4 bash -c hostname" > where.log 2>&1
[ "$(grep -c -x $a where.log) $(grep -c -x $b where.log)" = "2 2" ] || { log=where.log; fail "placement of 4 ranks"; }
for hosts in 1 2; do
  ranks=$((2 * hosts)) log=$work/two_hosts.$ranks.log
  "$source_dir/scripts/mpirun_local.sh" $ranks "$program" train tiny.yaml train.steps=6 run.folder=one$ranks > one$ranks.log 2>&1 ||
    { log=one$ranks.log; fail "$ranks ranks on one host"; }
  ./on $a "'$launch' hosts$hosts $ranks '$program' train tiny.yaml train.steps=6 run.folder=two$ranks" > "$log" 2>&1 ||
    fail "2 hosts x $hosts ranks: exit code $?"
  losses one$ranks > one.losses; losses two$ranks > two.losses
  consecutive two.losses && [ "$(wc -l < two.losses)" = 6 ] || fail "not 6 steps"
  cmp -s one.losses two.losses || { diff one.losses two.losses | head -n 4; fail "losses differ from one host's"; }
  echo "2 hosts x $hosts: 6 steps, last loss $(tail -n 1 two.losses | cut -d ' ' -f2), all equal to $ranks ranks on one host"
done

# Save now, then lose the other host.
log=$work/cut.log
./on $a "exec '$launch' hosts1 2 '$program' train tiny.yaml run.folder=cut train.steps=1000000 run.log_every=1000" \
  > "$log" 2>&1 &
launcher=$!
wait_for 90 test -s cut/metrics.jsonl || fail "no first step"
# The process of this very launch that is mpirun itself.
mpirun_pid=$(for pid in $(ip netns pids $a); do [ "$(cat /proc/$pid/comm 2> /dev/null)" = mpirun ] && echo $pid; done)
kill -USR1 $mpirun_pid || fail "no mpirun to send SIGUSR1 to"
wait_for 90 compgen -G 'cut/step-*' > /dev/null || fail "no checkpoint after SIGUSR1"
kill -0 $launcher 2> /dev/null || fail "the job ended at SIGUSR1"
saved=$(ls cut | sed -nE 's/^step-0*([0-9]+)$/\1/p' | tail -n 1)
# Two seconds without the cable, less than LN_LINK_TIMEOUT, must only be a pause.
ip -n $a link set v$a down
sleep 2
steps=$(losses cut | wc -l)
ip -n $a link set v$a up
more_steps() { [ "$(losses cut | wc -l)" -gt $((steps + 2)) ]; }
wait_for 90 more_steps || fail "no steps after an outage of 2 s (stopped at $steps)"
echo "an outage of 2 s is survived: $steps steps before, $(losses cut | wc -l) after"
start=$SECONDS
ip -n $a link set v$a down
ended() { ! kill -0 $launcher 2> /dev/null; }
wait_for 90 ended || fail "cut cable: the job is still there after 90 s"
wait $launcher; code=$?
seconds=$((SECONDS - start))
[ $code = 205 ] || fail "cut cable: exit code $code, wanted 205"
[ $seconds -le 30 ] || fail "cut cable: the job took $seconds s to end"
left() { [ -z "$(ip netns pids $a)$(ip netns pids $b)" ]; }
wait_for 90 left || fail "cut cable: processes left: $(ip netns pids $a | wc -l) here, $(ip netns pids $b | wc -l) there"
echo "SIGUSR1 saved step $saved; cut cable: exit code 205 after $seconds s, no process left on either host"

log=$work/resume.log
"$source_dir/scripts/mpirun_local.sh" 2 "$program" train tiny.yaml run.folder=cut train.steps=$((saved + 3)) > "$log" 2>&1 ||
  fail "resume on one host: exit code $?"
grep -q "resumed from cut/step-.* at step $saved" "$log" || fail "no resume from step $saved"
losses cut > cut.losses
consecutive cut.losses && [ "$(wc -l < cut.losses)" = $((saved + 3)) ] || fail "the resumed run has not $((saved + 3)) steps"
echo "resumed on one host at step $saved, ended at step $((saved + 3))"
echo PASSED
