#!/usr/bin/env bash
# scripts/gpu_bundle.sh, unpacked in an empty root folder with a shell's libraries, CUDA's and nothing else: training
# on the CPU with one and two ranks, with the system's C library and with the packed one, and the answers without a
# GPU and without CUDA's libraries; no python3 is there.
#   tests/gpu/bundle_test.sh BUILD_FOLDER     exits 77 where a root folder cannot be entered
set -uo pipefail
build=$(realpath "$1")
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
skip() { echo "SKIPPED: $*"; exit 77; }
fail() { echo "FAILED: $*"; [ ! -s "$work/log" ] || tail -n 25 "$work/log"; exit 1; }
[ "$(id -u)" = 0 ] || skip "chroot needs root"
command -v unshare > /dev/null || skip "unshare (package util-linux) is not installed"
unshare -m true 2> /dev/null || skip "no mount namespaces here"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A pretended compute-sanitizer, in folders as Python's package has them.
mkdir -p "$work"/tool/{bin,lib}
printf '#!/bin/bash\necho "Version 2025.3.1.0"\n' > "$work/tool/bin/compute-sanitizer"
chmod +x "$work/tool/bin/compute-sanitizer"
touch "$work"/tool/lib/lib{sanitizer-collection,TreeLauncherTargetInjection,other}.so
LN_SANITIZER=$work/tool/bin/compute-sanitizer LN_BUILD=$build "$source_dir/scripts/gpu_bundle.sh" "$work/bundle.tar.gz" \
  > "$work/log" 2>&1 || fail "no bundle"
grep -q ' with compute-sanitizer; NOT in it, expected there: libcublasLt' "$work/log" || fail "does not say what is not in it"
[ "$(stat -c %s "$work/bundle.tar.gz")" -le $((60 << 20)) ] || fail "above 60 MiB"
LIMIT_MIB=1 LN_BUILD=$build "$source_dir/scripts/gpu_bundle.sh" "$work/small.tar.gz" > "$work/log" 2>&1 && fail "1 MiB is enough?"
grep -q 'gpu_bundle: the file would have [0-9]* MiB, LIMIT_MIB allows 1$' "$work/log" || fail "no word about the limit"
[ ! -e "$work/small.tar.gz" ] || fail "a file above the limit was left"

# The root folder: a shell with the few tools that a bundle asks for, and their libraries.
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,cuda/lib64,etc,usr}
ln -s ../bin "$root/usr/bin"
for tool in bash env cat sed sort head tail awk grep tr paste dirname uname date timeout getconf ls mkdir mktemp rm tee cut nproc; do
  cp -L "$(command -v $tool)" "$root/bin/$tool" || fail "no $tool"
done
ldd "$root"/bin/* 2> /dev/null | grep -oE '/\S*\.so[^ ]*' | sort -u | while read -r library; do
  mkdir -p "$root$(dirname "$library")" && cp -L "$library" "$root$library"
done
# The whole C library, as every system has it.
folder=$(dirname "$(ldd /bin/bash | sed -nE 's/^\s+libc\.so\.6 => (\S+) .*/\1/p')")
for library in libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2; do
  cp -L "$folder/$library" "$root$folder/" || fail "no $library"
done
ln -sf bash "$root/bin/sh"
echo "root:x:0:0::/:/bin/sh" > "$root/etc/passwd"
tar -xzf "$work/bundle.tar.gz" -C "$root" || fail "the bundle cannot be unpacked"
[ "$(cd "$root/longnet-gpu/sanitizer" && echo *)" = "compute-sanitizer libTreeLauncherTargetInjection.so libsanitizer-collection.so" ] ||
  fail "compute-sanitizer is not in it as a whole"
[ ! -e "$root/longnet-gpu/lib/libc.so.6" ] || fail "the C library must not be in lib/"
cuda=$(ldd "$build/longnet" | sed -nE 's/.* => (\S*)\/libcublasLt\.so\S* .*/\1/p')
[ -n "$cuda" ] || fail "longnet is not linked with cuBLASLt"

# inside WORDS...: a command in the root folder with CUDA's libraries in /cuda/lib64; output in $work/log.
inside() {
  unshare -m bash -c 'mount --bind "$1" "$2/cuda/lib64" && mount -t proc proc "$2/proc" && mount --rbind /sys "$2/sys" && mount --rbind /dev "$2/dev" || exit 99
    root=$2; shift 2; exec chroot "$root" /bin/env -i PATH=/bin HOME=/tmp "$@"' inside "$cuda" "$root" "$@" > "$work/log" 2>&1
  local code=$?
  [ $code != 99 ] || skip "no mounts here: $(tail -n 1 "$work/log")"
  return $code
}
program=/longnet-gpu/bin
for i in $(seq 500); do echo "line $i of a small text, $((i * i % 977))"; done > "$root/tmp/text.txt"
settings=(data.train=/tmp/text.txt data.cache=/tmp/cache train.steps=3 train.sequence_length=256 train.evaluate_every=0
  train.sample_every=0 optimizer.warmup_steps=1 checkpoint.every=0 checkpoint.resume=none run.progress=off)
train=(train /longnet-gpu/configs/quickstart.yaml "${settings[@]}")
losses() { sed -nE 's/^\{"step":([0-9]+),"loss":([-0-9.e]+),.*/\1 \2/p' "$root/tmp/$1/metrics.jsonl"; }

inside CUDA_HOME=/cuda $program/longnet "${train[@]}" run.folder=/tmp/one || fail "training on the CPU"
[ "$(losses one | wc -l)" = 3 ] || fail "no three steps"
inside CUDA_HOME=/cuda LN_BUNDLE_LIBC=packed $program/longnet "${train[@]}" run.folder=/tmp/packed || fail "with the packed C library"
[ "$(losses one)" = "$(losses packed)" ] || fail "other losses with the packed C library"
inside CUDA_HOME=/cuda $program/mpirun --oversubscribe --bind-to none -n 2 $program/longnet "${train[@]}" run.folder=/tmp/two ||
  fail "two ranks"
[ "$(losses two | wc -l)" = 3 ] || fail "no three steps on two ranks"
inside CUDA_HOME=/cuda LN_BUNDLE_LIBC=packed $program/mpirun --oversubscribe --bind-to none -n 2 $program/longnet "${train[@]}" \
  run.folder=/tmp/two_packed || fail "two ranks with the packed C library"

if "$build/tests/gpu/gpu_test" --gtest_filter=none > /dev/null 2>&1; then skip "a GPU is here: the rest wants none"; fi
inside LN_CUDA_LIBS=/cuda/lib64 $program/gpu_test
[ $? = 77 ] || fail "gpu_test does not end with 77"
[ "$(cat "$work/log")" = "SKIPPED: no GPU: no NVIDIA driver is loaded" ] || fail "gpu_test says something else"
inside CUDA_HOME=/cuda /longnet-gpu/scripts/gpu_check.sh
[ $? = 69 ] || fail "gpu_check.sh does not end with 69"
[ "$(cat "$work/log")" = "gpu_check: no GPU: no NVIDIA driver is loaded" ] || fail "gpu_check.sh says something else"
inside $program/longnet "${train[@]}" run.folder=/tmp/none
[ $? = 127 ] || fail "without CUDA's libraries: not 127"
grep -qE '^longnet-gpu: not found: .*libcublasLt\.so\..*; pip install .*nvidia-cublas' "$work/log" ||
  fail "the lost library and its package are not named"
[ "$(wc -l < "$work/log")" = 1 ] || fail "the lost libraries take more than one line"
inside /longnet-gpu/scripts/gpu_check.sh --out /tmp/lost
[ $? = 2 ] || fail "gpu_check.sh without CUDA's libraries does not end with 2"
grep -q '"status": "not run".*libcublasLt' "$root/tmp/lost/report.json" || fail "no report about the lost library"
# Python's packages, found without python3.
for packages in /opt/some/lib/python3.11 /opt/app/.venv/lib/python3.12 /tmp/.local/lib/python3.10; do
  mkdir -p "$root$packages/site-packages/nvidia/cu13"
  ln -s /cuda/lib64 "$root$packages/site-packages/nvidia/cu13/lib"
  inside $program/gpu_test
  [ $? = 77 ] || fail "libraries in $packages are not found"
  rm -r "$root$packages"
done
echo "gpu_bundle: as expected, $(($(stat -c %s "$work/bundle.tar.gz") >> 20)) MiB"
