# Sourced by the launchers: what every start through mpirun needs and a user should not have to know.
# Exports Open MPI settings and OMP_NUM_THREADS. Does not start anything.

# mpirun_settings RANKS_PER_HOST
mpirun_settings() {
  local ranks=$1 cores
  cores=$(nproc)
  # Images and CI run as root; Open MPI refuses that unless told twice.
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  # The cores are divided among the ranks of a host.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > ranks ? cores / ranks : 1 ))}
  # Ranks that wait should not spin on a core that another rank needs.
  if [ "$ranks" -gt "$cores" ]; then export OMPI_MCA_mpi_yield_when_idle=1; fi
  # Shared memory between the ranks of one host without the kernel's ptrace permission (containers).
  export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
}
