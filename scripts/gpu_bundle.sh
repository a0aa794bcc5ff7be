#!/usr/bin/env bash
# Packs what scripts/gpu_check.sh needs on another machine.   scripts/gpu_bundle.sh [FILE.tar.gz]
# --help says what is in it and what is not.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
usage() {
  cat <<'T'
Usage: scripts/gpu_bundle.sh [FILE.tar.gz]        default longnet-gpu.tar.gz, from build-cuda/ (LN_BUILD: another)
There: tar -xzf FILE.tar.gz && longnet-gpu/scripts/gpu_check.sh

Packs longnet, gpu_test, the shared libraries and Open MPI plugins that they load, mpirun, configurations, golden files,
and compute-sanitizer if there is one here (LN_SANITIZER, PATH, CUDA's places, Python's packages) and the file stays
within the limit. The other machine needs x86-64 Linux, bash, coreutils, sed, awk, grep and an NVIDIA driver; python3
for the table of targets.

NOT in it: cuBLASLt, cuDNN, NCCL and NVRTC, 1.4 GB that cannot fit. They are taken from the other machine: an installed
toolkit, or the Python packages that PyTorch brings, of the same major versions; where one is missing the programs say in
one line which, and what to install. LIMIT_MIB=2000 packs them too.

LIMIT_MIB (60): a larger file is an error. From 1000 on CUDA's libraries are packed (about 1 GiB).
T
}
case ${1:-} in --help|-h) usage; exit 0 ;; esac
build=${LN_BUILD:-$root/build-cuda}
limit=${LIMIT_MIB:-60}
# shellcheck source-path=SCRIPTDIR source=gpu_places.sh
source "$root/scripts/gpu_places.sh"
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
cp "$root"/scripts/gpu_{check.sh,places.sh,report.py} "$bundle/scripts/"
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
# Python's package of each, from CUDA 13 on without a version where CUDA itself has one.
package_of() {
  local major=$2 suffix=''
  [ "$major" -ge 13 ] || suffix=-cu$major
  case $1 in
    libcudnn*) echo "nvidia-cudnn-cu$major" ;;
    libnccl*) echo "nvidia-nccl-cu$major" ;;
    libcublas*) echo "nvidia-cublas$suffix" ;;
    libnvrtc*) echo "nvidia-cuda-nvrtc$suffix" ;;
    libnvJitLink*) echo "nvidia-nvjitlink$suffix" ;;
    *) echo "nvidia-cuda-runtime$suffix" ;;
  esac
}
glibc_name='^(ld-linux.*|lib(c|m|dl|pthread|rt|resolv|util|nss_files|nss_dns))\.so'
: > "$work/cuda_names"
declare -A cuda_folder  # of each of CUDA's libraries: cuDNN and NCCL are often installed elsewhere
while read -r name path; do
  if [[ $name =~ $glibc_name ]]; then
    cp -L "$path" "$bundle/lib/glibc/$name"
  elif [[ $name =~ ^libcudart ]] || ! [[ $name =~ $cuda_name ]]; then
    cp -L "$path" "$bundle/lib/$name"
  else
    echo "$name" >> "$work/cuda_names"
    cuda_folder[$name]=$(dirname "$path")
  fi
done < <(libraries "$build/longnet" "$build/tests/gpu/gpu_test" "$mpirun" "$bundle"/lib/openmpi/*.so)
missing=$(ldd "$build/longnet" "$build/tests/gpu/gpu_test" | grep 'not found' || true)
[ -z "$missing" ] || fail "the programs do not start here: $missing"
[ -s "$work/cuda_names" ] || fail "$build/longnet is linked with no CUDA library: a CPU build?"
# "name package" each.
cuda_major=$(sed -nE 's/^libcublasLt\.so\.([0-9]+)$/\1/p' "$work/cuda_names")
while read -r name; do echo "$name $(package_of "$name" "${cuda_major:-13}")"; done < "$work/cuda_names" > "$bundle/cuda_libraries"
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
# loader finds by itself, CUDA_HOME, /usr/local/cuda*, Python's packages "nvidia", conda's folders, lib/cuda of this folder.
source "$here/scripts/gpu_places.sh"

# found_by_loader NAME: in LD_LIBRARY_PATH or the system's cache.
found_by_loader() {
  local folder IFS=:
  for folder in ${LD_LIBRARY_PATH:-}; do [ -e "$folder/$1" ] && return 0; done
  { ldconfig -p || /sbin/ldconfig -p; } 2> /dev/null | grep -q "^[[:space:]]*$1 "
}

# Prints the folders to add; complains about a library that is nowhere.
cuda_path() {
  local name package folder places path='' lost='' packages=''
  mapfile -t places < <(nvidia_places lib; echo "$here/lib/cuda")
  while read -r name package; do
    for folder in $(echo "${LN_CUDA_LIBS:-}" | tr : ' '); do
      if [ -e "$folder/$name" ]; then path=$path:$folder; continue 2; fi
    done
    if found_by_loader "$name"; then continue; fi
    for folder in "${places[@]}"; do
      if [ -e "$folder/$name" ]; then path=$path:$folder; continue 2; fi
    done
    lost="$lost $name" packages="$packages $package"
  done < "$here/cuda_libraries"
  if [ -n "$lost" ]; then
    echo "longnet-gpu: not found:$lost; pip install$packages, or set LN_CUDA_LIBS to their folders, or pack them: LIMIT_MIB=2000 scripts/gpu_bundle.sh" >&2
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

# compute-sanitizer with the libraries that it injects; a toolkit's program is a script beside the real one.
sanitizer=${LN_SANITIZER:-}
if [ -z "$sanitizer" ]; then
  while read -r folder; do
    if [ -x "$folder/compute-sanitizer" ]; then sanitizer=$folder/compute-sanitizer; break; fi
  done < <(nvidia_places bin; dirname "$(command -v compute-sanitizer || echo /none/none)")
fi
if [ -n "$sanitizer" ]; then
  sanitizer=$(realpath "$sanitizer")
  folder=$(dirname "$sanitizer")
  if [ ! -e "$folder/libsanitizer-collection.so" ] && [ -x "$folder/../compute-sanitizer/compute-sanitizer" ]; then
    folder=$(realpath "$folder/../compute-sanitizer")
  fi
  mkdir "$bundle/sanitizer"
  cp -L "$folder/compute-sanitizer" "$bundle/sanitizer/"
  for library in "$folder"/lib*.so* "$folder"/../lib/lib{sanitizer,TreeLauncher,Interceptor}*.so*; do
    if [[ ${library##*/} =~ ^lib(sanitizer|TreeLauncher|Interceptor) ]] && [ -e "$library" ]; then cp -L "$library" "$bundle/sanitizer/"; fi
  done
  if ! "$bundle/sanitizer/compute-sanitizer" --version > /dev/null 2>&1; then
    echo "gpu_bundle: $sanitizer does not start from a folder of its own: left out" >&2
    rm -rf "$bundle/sanitizer"
  fi
fi

level=$([ "$limit" -ge 1000 ] && echo 1 || echo 9)
pack() {
  tar -C "$work" --owner=0 --group=0 --sort=name -cf - longnet-gpu | gzip "-$level" > "$file.part"
  bytes=$(stat -c %s "$file.part")
}
pack
if [ "$bytes" -gt $((limit << 20)) ] && [ -d "$bundle/sanitizer" ]; then
  echo "gpu_bundle: with compute-sanitizer the file would have $((bytes >> 20)) MiB: left out" >&2
  rm -rf "$bundle/sanitizer"
  pack
fi
if [ "$bytes" -gt $((limit << 20)) ]; then
  du -k "$bundle"/programs/* "$bundle"/lib/* | sort -rn | head -n 8 >&2
  rm -f "$file.part"
  fail "the file would have $((bytes >> 20)) MiB, LIMIT_MIB allows $limit"
fi
mv "$file.part" "$file"
echo "gpu_bundle: $file, $((bytes >> 20)) MiB, $([ -d "$bundle/sanitizer" ] && echo with || echo without) compute-sanitizer$([ "$limit" -ge 1000 ] || echo "; NOT in it, expected there: $(paste -sd ' ' "$work/cuda_names")")"
