#!/usr/bin/env bash
# mpirun on this machine: scripts/mpirun_local.sh RANKS COMMAND [ARG ...]
# More ranks than cores are allowed, ranks are not pinned to one core, and the cores are divided among
# them. mpirun is that of the MPI which COMMAND is linked with (Open MPI or MPICH); LN_MPIEXEC names another.
# Several machines: scripts/launch_mpirun.sh. Exit codes: 64 for wrong input here, else mpirun's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/mpirun_settings.sh"
source "$(dirname "${BASH_SOURCE[0]}")/mpirun_signals.sh"
refuse() { echo "mpirun_local: $*" >&2; exit 64; }
[ $# -ge 2 ] || refuse "usage: scripts/mpirun_local.sh RANKS COMMAND [ARG ...]"
ranks=$1; shift
[[ $ranks =~ ^[1-9][0-9]{0,6}$ ]] || refuse "RANKS is \"$ranks\"; give a number of at least 1"
command -v "$1" > /dev/null || refuse "COMMAND is \"$1\": no such program; build it with scripts/build.sh cpu"
remove_stale_segments
mpirun_settings "$ranks"
find_mpirun "$1" || exit 127
options=()
case $mpirun_kind in
  openmpi) options=(--oversubscribe --bind-to none) ;;
  hydra) options=(-bind-to none) ;;
esac
follow_mpirun "$mpirun" ${options[@]+"${options[@]}"} -n "$ranks" "$@"
