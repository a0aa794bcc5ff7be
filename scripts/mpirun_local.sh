#!/usr/bin/env bash
# mpirun on this machine: scripts/mpirun_local.sh RANKS COMMAND [ARG ...]
# More ranks than cores are allowed, ranks are not pinned to one core, and the cores are divided among
# them. mpirun is that of the MPI which COMMAND is linked with (Open MPI or MPICH); LN_MPIEXEC names another.
# Several machines: scripts/launch_mpirun.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/mpirun_settings.sh"
ranks=$1; shift
mpirun_settings "$ranks"
find_mpirun "$1" || exit 127
options=()
case $mpirun_kind in
  openmpi) options=(--oversubscribe --bind-to none) ;;
  hydra) options=(-bind-to none) ;;
esac
exec "$mpirun" ${options[@]+"${options[@]}"} -n "$ranks" "$@"
