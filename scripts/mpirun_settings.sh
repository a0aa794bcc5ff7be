# Sourced by the launchers: what every start through mpirun needs and a user should not have to know.
# Exports Open MPI settings and OMP_NUM_THREADS, and finds the right mpirun. Does not start anything.

# mpirun_settings RANKS_PER_HOST
mpirun_settings() {
  local ranks=$1 cores
  cores=$(nproc)
  # Images and CI run as root, which Open MPI allows only if both variables are set.
  if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  # The cores are divided among the ranks of a host.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( cores > ranks ? cores / ranks : 1 ))}
  # Ranks that wait should not spin on a core that another rank needs.
  if [ "$ranks" -gt "$cores" ]; then export OMPI_MCA_mpi_yield_when_idle=1; fi
  # Shared memory between the ranks of one host without the kernel's ptrace permission (containers): by the
  # name of Open MPI 4, and by that of Open MPI 5.
  export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
  export OMPI_MCA_smsc=${OMPI_MCA_smsc:-^cma}
}

# find_mpirun COMMAND: sets mpirun to the launcher of the MPI that COMMAND is linked with (under another MPI's
# every rank would be a job of its own), and mpirun_kind to openmpi, hydra (MPICH) or unknown. LN_MPIEXEC
# names another launcher.
find_mpirun() {
  local library wanted name
  library=$(ldd "$(command -v "$1")" 2> /dev/null | grep -oE 'lib(mpich|mpi)\.so\.[0-9]+' | head -n 1 || true)
  case $library in
    libmpich.* | libmpi.so.12) wanted=hydra ;;
    libmpi.*) wanted=openmpi ;;
    *) wanted= ;;
  esac
  for name in ${LN_MPIEXEC:-mpirun mpirun.openmpi mpirun.mpich mpiexec.hydra}; do
    command -v "$name" > /dev/null || continue
    case $("$name" --version 2>&1 | head -n 3) in
      *"Open MPI"* | *OpenRTE*) mpirun_kind=openmpi ;;
      *HYDRA*) mpirun_kind=hydra ;;
      *) mpirun_kind=unknown ;;
    esac
    mpirun=$name
    if [ -n "${LN_MPIEXEC:-}" ] || [ -z "$wanted" ] || [ "$mpirun_kind" = "$wanted" ]; then return 0; fi
  done
  echo "$(basename "$0"): no mpirun${wanted:+ for $1 ($library)} here; scripts/setup.sh installs Open MPI, LN_MPIEXEC names one" >&2
  return 1
}

# remove_stale_segments: removes the shared memory that killed jobs of Open MPI have left in /dev/shm (or in the
# folder $1): of this user and host by its name, older than a minute, and mapped by no process.
remove_stale_segments() {
  local folder=${1:-/dev/shm} segment removed=0 mapped
  local -a found=()
  for segment in "$folder"/{vader,sm}_segment."$(hostname)"."$(id -u)".*; do
    if [ -f "$segment" ] && [ -O "$segment" ] && [ -n "$(find "$segment" -maxdepth 0 -mmin +1)" ]; then
      found+=("$segment")
    fi
  done
  [ ${#found[@]} -gt 0 ] || return 0
  mapped=$(cat /proc/[0-9]*/maps 2> /dev/null | grep -F "_segment." || true)
  for segment in "${found[@]}"; do
    grep -qF "$segment" <<< "$mapped" && continue
    rm -f "$segment" && removed=$((removed + 1))
  done
  [ $removed = 0 ] || echo "$(basename "$0"): removed $removed segments of shared memory that a killed job had left in $folder" >&2
}
