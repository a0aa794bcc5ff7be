#!/usr/bin/env bash
# Packs what scripts/gpu_check.sh needs on another machine: longnet, gpu_test, the shared libraries and Open MPI
# plugins that they load, mpirun, configurations, golden files. The other machine needs x86-64 Linux, bash, coreutils,
# sed, awk, grep, python3, an NVIDIA driver, and CUDA's libraries: an installed toolkit, or the Python packages that
# PyTorch brings.
#   scripts/gpu_bundle.sh [FILE.tar.gz]      default longnet-gpu.tar.gz, from build-cuda/ (LN_BUILD names another)
# LIMIT_MIB (60): a larger file is an error. From 1000 on CUDA's libraries are packed too (about 1 GiB).
# There: tar -xzf FILE.tar.gz && longnet-gpu/scripts/gpu_check.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${LN_BUILD:-$root/build-cuda}
limit=${LIMIT_MIB:-60}
file=$(realpath -m "${1:-longnet-gpu.tar.gz}")
fail() { echo "gpu_bundle: $*" >&2; exit 1; }
case $limit in ''|*[!0-9]*) fail "LIMIT_MIB=$limit: allowed are whole numbers" ;; esac
for program in "$build/longnet" "$build/tests/gpu/gpu_test"; do
  [ -x "$program" ] || fail "there is no $program; build it: scripts/build.sh cuda"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/longnet-gpu
mkdir -p "$bundle"/{bin,programs,lib/glibc,lib/cuda,lib/openmpi,share,configs,scripts,tests/golden}

cp "$build/longnet" "$build/tests/gpu/gpu_test" "$bundle/programs/"
mpirun=$(command -v orterun || true)
[ -n "$mpirun" ] || fail "orterun (Open MPI 4) is not installed"
cp -L "$mpirun" "$bundle/programs/orterun"
strip "$bundle"/programs/*
cp "$root"/configs/*.yaml "$bundle/configs/"
cp "$root"/tests/golden/*.safetensors "$bundle/tests/golden/"
cp "$root"/scripts/gpu_check.sh "$root"/scripts/gpu_report.py "$bundle/scripts/"
git -C "$root" describe --always --dirty > "$bundle/commit" 2> /dev/null || echo unknown > "$bundle/commit"

# Open MPI's plugins for ranks on one machine: no fabrics, no batch systems, no OpenSHMEM.
plugins=$(ompi_info --path pkglibdir --parsable | sed 's/.*://')
[ -d "$plugins" ] || fail "no folder of Open MPI's plugins: ${plugins:-ompi_info names none}"
cp "$plugins"/mca_*.so "$bundle/lib/openmpi/"
(cd "$bundle/lib/openmpi" && rm -f mca_*{ucx,ofi,openib,psm,slurm,flux,jsm,romio,netlink,gridengine,tm,loadleveler,knem}*.so \
  mca_{atomic,memheap,scoll,spml,sshmem}_*.so)
cp -r "$(ompi_info --path pkgdatadir --parsable | sed 's/.*://')" "$bundle/share/openmpi"

# libraries FILE...: "name path" of every library that the files load, theirs included.
libraries() { ldd "$@" 2> /dev/null | sed -nE 's/^\s+(\S+) => (\/\S+) .*/\1 \2/p' | sort -u; }
cuda_name='^lib(cublas|cudart|cudnn|nccl|nvrtc|nvJitLink|nvToolsExt|cuda)'
glibc_name='^(ld-linux.*|lib(c|m|dl|pthread|rt|resolv|util|nss_files|nss_dns))\.so'
: > "$bundle/cuda_libraries"
declare -A cuda_folder  # of each of CUDA's libraries: cuDNN and NCCL are often installed elsewhere
while read -r name path; do
  if [[ $name =~ $glibc_name ]]; then
    cp -L "$path" "$bundle/lib/glibc/$name"
  elif [[ $name =~ ^libcudart ]] || ! [[ $name =~ $cuda_name ]]; then
    cp -L "$path" "$bundle/lib/$name"
  else
    echo "$name" >> "$bundle/cuda_libraries"
    cuda_folder[$name]=$(dirname "$path")
  fi
done < <(libraries "$build/longnet" "$build/tests/gpu/gpu_test" "$mpirun" "$bundle"/lib/openmpi/*.so)
missing=$(ldd "$build/longnet" "$build/tests/gpu/gpu_test" | grep 'not found' || true)
[ -z "$missing" ] || fail "the programs do not start here: $missing"
[ -s "$bundle/cuda_libraries" ] || fail "$build/longnet is linked with no CUDA library: a CPU build?"
# The loader and what libraries of CUDA want by older names, for machines whose C library is older.
loader=$(ldd "$build/longnet" | sed -nE 's/^\s+(\/\S*ld-linux\S*) .*/\1/p')
cp -L "$loader" "$bundle/lib/glibc/ld-linux.so"
folder=$(dirname "$(libraries "$build/longnet" | sed -nE 's/^libc\.so\.6 //p')")
for name in libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2 libnss_files.so.2 libnss_dns.so.2; do
  cp -L "$folder/$name" "$bundle/lib/glibc/" 2> /dev/null || true
done
strip --strip-unneeded "$bundle"/lib/*.so* "$bundle"/lib/openmpi/*.so 2> /dev/null || true
echo "libc_version=$(getconf GNU_LIBC_VERSION | sed 's/.* //')" > "$bundle/environment.sh"
if [ "$limit" -ge 1000 ]; then
  for name in "${!cuda_folder[@]}"; do
    cp -L "${cuda_folder[$name]}/$name" "$bundle/lib/cuda/"
    case $name in  # loaded by these when they are needed
      libcudnn.so.*) cp -L "${cuda_folder[$name]}"/libcudnn_*.so.[0-9] "$bundle/lib/cuda/" ;;
      libnvrtc.so.*) cp -L "${cuda_folder[$name]}"/libnvrtc-builtins.so.[0-9]*.[0-9] "$bundle/lib/cuda/" ;;
    esac
  done
fi

cat >> "$bundle/environment.sh" <<'S'
# Sourced by bin/*: start NAME WORDS... runs programs/NAME with the libraries of this folder.
# CUDA's libraries are taken from the first place that has one: LN_CUDA_LIBS (folders, colons between them), what the
# loader finds by itself, CUDA_HOME, /usr/local/cuda*, Python's packages "nvidia", CONDA_PREFIX, lib/cuda of this folder.

cuda_places() {
  [ -z "${CUDA_HOME:-}" ] || printf '%s\n' "$CUDA_HOME/lib64" "$CUDA_HOME/lib"
  ls -d /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 2> /dev/null
  if command -v python3 > /dev/null; then
    python3 -c 'import glob, sys; print("\n".join(f for p in sys.path for f in glob.glob(p + "/nvidia/*/lib")))' 2> /dev/null
  fi
  [ -z "${CONDA_PREFIX:-}" ] || echo "$CONDA_PREFIX/lib"
  echo "$here/lib/cuda"
}

# found_by_loader NAME: in LD_LIBRARY_PATH or the system's cache.
found_by_loader() {
  local folder IFS=:
  for folder in ${LD_LIBRARY_PATH:-}; do [ -e "$folder/$1" ] && return 0; done
  { ldconfig -p || /sbin/ldconfig -p; } 2> /dev/null | grep -q "^[[:space:]]*$1 "
}

# Prints the folders to add; complains about a library that is nowhere.
cuda_path() {
  local name folder places path='' lost=''
  places=$(cuda_places)
  while read -r name; do
    for folder in $(echo "${LN_CUDA_LIBS:-}" | tr : ' '); do
      if [ -e "$folder/$name" ]; then path=$path:$folder; continue 2; fi
    done
    if found_by_loader "$name"; then continue; fi
    for folder in $places; do
      if [ -e "$folder/$name" ]; then path=$path:$folder; continue 2; fi
    done
    lost="$lost $name"
  done < "$here/cuda_libraries"
  if [ -n "$lost" ]; then
    echo "longnet-gpu: not found:$lost; set CUDA_HOME or LN_CUDA_LIBS, install CUDA's Python packages, or pack them: LIMIT_MIB=2000 scripts/gpu_bundle.sh" >&2
    return 1
  fi
  echo "$path" | tr : '\n' | awk 'NF && !seen[$0]++' | paste -sd : -
}

# older A B: version A is below version B.
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

start() {
  local name=$1 cuda='' here_libc; shift
  # Ranks inherit what mpirun's process has found.
  if [ "${LN_BUNDLE:-}" != "$here" ]; then
    cuda=$(cuda_path) || exit 127
    export LN_BUNDLE=$here LD_LIBRARY_PATH=$here/lib${cuda:+:$cuda}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  fi
  export LN_SOURCE_DIR=${LN_SOURCE_DIR:-$here}
  export OPAL_PREFIX=$here OPAL_LIBDIR=$here/lib OPAL_PKGLIBDIR=$here/lib/openmpi OPAL_DATADIR=$here/share
  export OPAL_PKGDATADIR=$here/share/openmpi OPAL_SYSCONFDIR=$here/share/openmpi PMIX_INSTALL_PREFIX=$here
  # One machine only; a lone process needs no helper.
  export OMPI_MCA_plm=isolated OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_btl=self,vader,tcp
  export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  here_libc=$(getconf GNU_LIBC_VERSION 2> /dev/null | sed 's/.* //')
  if [ "${LN_BUNDLE_LIBC:-}" = packed ] || [ -z "$here_libc" ] || older "$here_libc" "$libc_version"; then
    exec "$here/lib/glibc/ld-linux.so" --library-path "$here/lib/glibc:$LD_LIBRARY_PATH" "$here/programs/$name" "$@"
  fi
  exec "$here/programs/$name" "$@"
}
S
for name in longnet gpu_test mpirun; do
  cat > "$bundle/bin/$name" <<S
#!/usr/bin/env bash
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")/.." && pwd)
source "\$here/environment.sh"
start $([ $name = mpirun ] && echo orterun || echo $name) "\$@"
S
done
chmod +x "$bundle"/bin/*

level=$([ "$limit" -ge 1000 ] && echo 1 || echo 9)
tar -C "$work" --owner=0 --group=0 --sort=name -cf - longnet-gpu | gzip "-$level" > "$file.part"
bytes=$(stat -c %s "$file.part")
if [ "$bytes" -gt $((limit << 20)) ]; then
  du -k "$bundle"/programs/* "$bundle"/lib/* | sort -rn | head -n 8 >&2
  rm -f "$file.part"
  fail "the file would have $((bytes >> 20)) MiB, LIMIT_MIB allows $limit"
fi
mv "$file.part" "$file"
echo "gpu_bundle: $file, $((bytes >> 20)) MiB$([ "$limit" -ge 1000 ] || echo "; CUDA's libraries are expected there: $(paste -sd ' ' "$bundle/cuda_libraries")")"
