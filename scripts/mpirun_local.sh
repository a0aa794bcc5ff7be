#!/usr/bin/env bash
# mpirun on this machine: scripts/mpirun_local.sh RANKS COMMAND [ARG ...]
# More ranks than cores are allowed, ranks are not pinned to one core, and the cores are divided among
# them. Several machines: scripts/launch_mpirun.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/mpirun_settings.sh"
ranks=$1; shift
mpirun_settings "$ranks"
exec mpirun --oversubscribe --bind-to none -n "$ranks" "$@"
