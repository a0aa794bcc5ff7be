#!/usr/bin/env bash
# mpirun on this machine: scripts/mpirun_local.sh RANKS COMMAND [ARG ...]
# Sets what one machine needs and a user should not have to know: root is allowed (images, CI), more
# ranks than cores are allowed, ranks are not pinned to one core, and the cores are divided among them.
set -euo pipefail
ranks=$1; shift
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > ranks ? cores / ranks : 1 ))}
# Ranks that wait should not spin on a core that another rank needs.
if [ "$ranks" -gt "$cores" ]; then export OMPI_MCA_mpi_yield_when_idle=1; fi
# Shared memory between the ranks of one host without the kernel's ptrace permission (containers).
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
exec mpirun --oversubscribe --bind-to none -n "$ranks" "$@"
