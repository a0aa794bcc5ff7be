#!/usr/bin/env bash
# mpirun over several machines: scripts/launch_mpirun.sh HOSTFILE RANKS COMMAND [ARG ...]
#   scripts/launch_mpirun.sh hosts 16 build/longnet train configs/enwik8.yaml
# HOSTFILE: a line per machine, "HOST slots=N": N ranks at most there; # starts a comment. Machines are
# filled in order, so neighbouring ranks, which exchange most, share one. Program, configuration and data
# need the same paths everywhere (a shared file system or copies); the run's folder is rank 0's.
# Options, by environment:
#   LN_NETWORK       interface or subnet for all traffic (eth0, 10.0.0.0/24); default: Open MPI chooses
#   OMP_NUM_THREADS  threads per rank; default: this machine's cores / the largest slots in use
#   LN_LINK_TIMEOUT  seconds of silence after which a machine counts as lost and the job ends with exit
#                    code 205; default 30, at least 4. A shorter outage is survived.
#   LN_AGENT         what starts a command on a host, in place of ssh: called as LN_AGENT HOST COMMAND...
#   LN_MPIRUN        more options for mpirun, split at spaces
#   LN_MPIEXEC       which mpirun; default: that of the MPI which COMMAND is linked with
# Exit codes: 64 for wrong input here, else mpirun's (docs/launching.md).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/mpirun_settings.sh"
source "$(dirname "${BASH_SOURCE[0]}")/mpirun_signals.sh"
refuse() { echo "launch_mpirun: $*" >&2; exit 64; }

[ $# -ge 3 ] || refuse "usage: scripts/launch_mpirun.sh HOSTFILE RANKS COMMAND [ARG ...]"
hostfile=$1 ranks=$2; shift 2
[ -f "$hostfile" ] || refuse "hostfile $hostfile: no such file; write a line \"HOST slots=N\" per machine"
[ -r "$hostfile" ] || refuse "hostfile $hostfile: not readable"
[[ $ranks =~ ^[1-9][0-9]{0,6}$ ]] || refuse "RANKS is \"$ranks\"; give a number of at least 1"
timeout=${LN_LINK_TIMEOUT:-30}
[[ $timeout =~ ^[1-9][0-9]{0,4}$ ]] && [ "$timeout" -ge 4 ] ||
  refuse "LN_LINK_TIMEOUT is \"$timeout\"; give whole seconds, at least 4"

# Slots in all, the hosts in use, and the most ranks that one of them gets.
total=0 hosts=0 most=0 number=0
declare -A line_of=()
while IFS= read -r line || [ -n "$line" ]; do
  number=$((number + 1))
  read -r host slots rest <<< "${line%%#*}" || true
  [ -n "$host" ] || continue
  [[ $slots =~ ^slots=([1-9][0-9]{0,5})$ ]] && slots=${BASH_REMATCH[1]} ||
    refuse "hostfile $hostfile, line $number: \"$host ${slots}\" is not \"HOST slots=N\" with N of at least 1"
  [ -z "$rest" ] || refuse "hostfile $hostfile, line $number: \"$rest\" after slots=$slots is not understood"
  [ -z "${line_of[$host]:-}" ] ||
    refuse "hostfile $hostfile, line $number: $host is already on line ${line_of[$host]}; write the sum of its slots there"
  line_of[$host]=$number
  if [ "$total" -lt "$ranks" ]; then
    hosts=$((hosts + 1))
    here=$(( ranks - total < slots ? ranks - total : slots ))
    most=$(( here > most ? here : most ))
  fi
  total=$((total + slots))
done < "$hostfile"
[ "$total" -gt 0 ] || refuse "hostfile $hostfile names no host; write a line \"HOST slots=N\" per machine"
[ "$ranks" -le "$total" ] ||
  refuse "$ranks ranks requested, but $hostfile has $total slots; raise slots=N, add hosts or request fewer ranks"
find_mpirun "$1" || exit 64
[ "$mpirun_kind" = openmpi ] ||
  refuse "$mpirun is not Open MPI's; with MPICH: mpiexec.mpich -f HOSTFILE -n $ranks COMMAND, hosts as HOST:N"

remove_stale_segments
mpirun_settings "$most"
options=(--hostfile "$hostfile" -n "$ranks" --map-by slot --bind-to none -x OMP_NUM_THREADS)
# A cut link is not noticed otherwise: after `time` s of silence `probes` probes, `intvl` s apart.
interval=$(( timeout >= 10 ? timeout / 5 : 1 ))
options+=(--mca oob_tcp_keepalive_time $((timeout - 3 * interval))
          --mca oob_tcp_keepalive_intvl "$interval" --mca oob_tcp_keepalive_probes 3)
if [ -n "${LN_NETWORK:-}" ]; then
  options+=(--mca btl_tcp_if_include "$LN_NETWORK" --mca oob_tcp_if_include "$LN_NETWORK")
fi
if [ -n "${LN_AGENT:-}" ]; then options+=(--mca plm_rsh_agent "$LN_AGENT"); fi
# Ranks of one host talk through shared memory, hosts over TCP; a site's own choice (UCX, ...) wins.
if [ -z "${OMPI_MCA_pml:-}${OMPI_MCA_btl:-}" ]; then options+=(--mca btl "tcp,self,vader"); fi
echo "launch_mpirun: $ranks ranks on $hosts of ${#line_of[@]} hosts, at most $most each, $OMP_NUM_THREADS threads per rank" >&2
# shellcheck disable=SC2086  # LN_MPIRUN is a list of words
follow_mpirun "$mpirun" "${options[@]}" ${LN_MPIRUN:-} "$@"
