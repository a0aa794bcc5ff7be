# shellcheck shell=bash
# Sourced by scripts/gpu_check.sh and the programs of a bundle: where CUDA's parts may lie.

# nvidia_places lib|bin: folders that exist, one a line, likeliest first. Python's packages "nvidia" are also found
# where no python3 runs.
nvidia_places() {
  local kind=$1 folder base
  {
    if [ "$kind" = lib ]; then
      [ -z "${CUDA_HOME:-}" ] || printf '%s\n' "$CUDA_HOME/lib64" "$CUDA_HOME/lib"
      printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda-*/lib64
    else
      [ -z "${CUDA_HOME:-}" ] || printf '%s\n' "$CUDA_HOME/bin" "$CUDA_HOME/compute-sanitizer"
      for base in /usr/local/cuda /usr/local/cuda-* /opt/nvidia /opt/nvidia/* /opt/nvidia/*/* /opt/nvidia/*/*/*; do
        printf '%s\n' "$base/bin" "$base/compute-sanitizer"
      done
    fi
    if command -v python3 > /dev/null; then
      python3 -c 'import glob, sys; print("\n".join(f for p in sys.path for f in glob.glob(p + "/nvidia/*/'"$kind"'")))' 2> /dev/null
    fi
    for base in ${VIRTUAL_ENV:+"$VIRTUAL_ENV"} ${CONDA_PREFIX:+"$CONDA_PREFIX"} "${HOME:-/root}"/.local /usr/local /usr /opt/* /opt/*/.venv \
      "${HOME:-/root}"/{miniconda3,anaconda3,miniforge3}{,/envs/*}; do
      printf '%s\n' "$base"/lib/python3*/{site,dist}-packages/nvidia/*/"$kind"
    done
    for base in ${CONDA_PREFIX:+"$CONDA_PREFIX"} /opt/conda "${HOME:-/root}"/{miniconda3,anaconda3,miniforge3}{,/envs/*}; do
      printf '%s\n' "$base/$kind"
    done
  } | awk '!seen[$0]++' | while read -r folder; do [ ! -d "$folder" ] || echo "$folder"; done
}
