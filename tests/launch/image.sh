#!/usr/bin/env bash
# Builds an image with a Docker daemon of its own and runs it as its user: version, training on one rank and under
# mpirun on two, the same losses as the program outside, saving at `docker stop`.
# Usage: tests/launch/image.sh PROGRAM [cpu|cuda]    Exits 77 where it cannot be done.
#   cpu, the default: docker/cpu.Dockerfile. 4 GB in the temporary folder while it runs, ten minutes on two cores.
#   cuda: docker/Dockerfile, with the toolkit of CUDA_HOME (/usr/local/cuda) copied into the build stage's base; the
#     image's CPU path, its libraries, and its refusal of run.backend=cuda without a driver. 8 GB (twice that with vfs), twenty minutes.
#     LN_CUDA_ARCHITECTURES: GPUs to compile for, default 90a-real; empty: those of the preset.
# BASE_IMAGE=name: pulled; BASE_ROOTFS=folder: a Debian 12 there; default: one made by debootstrap, for which no
# registry is needed. LN_JOBS: compilers at a time. Installs docker.io and debootstrap where they are missing.
set -uo pipefail
program=$(realpath "$1")
kind=${2:-cpu}
image=longnet:$kind
case $kind in
  cpu) file=docker/cpu.Dockerfile ;;
  cuda) file=docker/Dockerfile ;;
  *) echo "image.sh: $kind: must be cpu or cuda" >&2; exit 64 ;;
esac
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
source "$source_dir/tests/launch/common.sh"
log=
[ "$(id -u)" = 0 ] || skip "starting a Docker daemon needs root"
toolkit=${CUDA_HOME:-/usr/local/cuda}
[ $kind = cpu ] || [ -x "$toolkit/bin/nvcc" ] || skip "no CUDA toolkit in $toolkit (set CUDA_HOME)"
[ $kind = cpu ] || [ -f "$source_dir/third_party/cudnn_frontend/version" ] || skip "no third_party/cudnn_frontend: run scripts/setup.sh cuda"
missing=()
for tool in dockerd:docker.io debootstrap:debootstrap; do
  command -v "${tool%%:*}" > /dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get > /dev/null || skip "no ${missing[*]} and no apt-get here"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } > /dev/null 2>&1 ||
    skip "cannot install ${missing[*]}"
fi
work=$(mktemp -d)
daemon=
cleanup() {
  if [ -n "$daemon" ]; then
    "${docker[@]}" ps -q 2> /dev/null | xargs -r "${docker[@]}" kill > /dev/null 2>&1
    kill "$daemon" 2> /dev/null
    wait "$daemon" 2> /dev/null
  fi
  # The daemon leaves its network name space mounted.
  awk -v w="$work/" 'index($2, w) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount 2> /dev/null
  rm -rf "$work"
}
trap cleanup EXIT
docker=(docker -H "unix://$work/socket")
# The storage driver is what the daemon finds (vfs works anywhere, but copies every layer whole). No bridge and
# no packet filter: the container uses the host's network, as an HPC job would.
dockerd --iptables=false --ip6tables=false --bridge=none --data-root "$work/root" \
  --exec-root "$work/exec" -H "unix://$work/socket" -p "$work/pid" > "$work/dockerd.log" 2>&1 &
daemon=$!
up() { "${docker[@]}" version > /dev/null 2>&1; }
wait_for 60 up || { log=$work/dockerd.log; tail -n 5 "$work/dockerd.log"; skip "no Docker daemon can be started here"; }
base=${BASE_IMAGE:-}
if [ -z "$base" ]; then
  base=bookworm-minbase:1
  rootfs=${BASE_ROOTFS:-$work/rootfs}
  [ -n "${BASE_ROOTFS:-}" ] || debootstrap --variant=minbase bookworm "$rootfs" > "$work/debootstrap.log" 2>&1 ||
    { tail -n 3 "$work/debootstrap.log"; skip "debootstrap cannot make a base image"; }
  tar -C "$rootfs" -c . | "${docker[@]}" import - "$base" > /dev/null || fail "import of the base image"
  rm -rf "$work/rootfs"
fi
size() { "${docker[@]}" image inspect --format '{{.Size}}' "$1" | awk '{printf "%.0f MB", $1 / 1e6}'; }

# What is needed of the toolkit becomes the build stage's base, as docker/README.md shows.
build_arguments=(--build-arg "BASE_IMAGE=$base" --build-arg "JOBS=${LN_JOBS:-0}")
log=$work/build.log
if [ $kind = cuda ]; then
  mkdir -p "$work/toolkit/lib"
  cp -a "$toolkit"/{bin,include,nvvm} "$work/toolkit/" &&
    cp -a "$toolkit"/lib64/lib{cudart,cudadevrt,culibos,cublasLt,cudnn,nccl,nvrtc.so,nvrtc-builtins.so}* "$work/toolkit/lib/" &&
    ln -s lib "$work/toolkit/lib64" || skip "$toolkit lacks some of nvcc, the runtime, cuBLASLt, cuDNN, NCCL and NVRTC"
  # CMake may look for both in a place of each target's own.
  [ ! -d "$toolkit/targets" ] || cp -a "$toolkit/targets" "$work/toolkit/"
  printf 'FROM %s\nCOPY . /usr/local/cuda\n' "$base" |
    DOCKER_BUILDKIT=0 "${docker[@]}" build -t toolkit:1 -f - "$work/toolkit" > "$log" 2>&1 || fail "the base with a toolkit"
  rm -rf "$work/toolkit"
  build_arguments+=(--build-arg BUILD_IMAGE=toolkit:1 --build-arg "CUDA_ARCHITECTURES=${LN_CUDA_ARCHITECTURES-90a-real}")
fi
# The tree goes through a pipe, so that third_party may be a link.
start=$SECONDS
tar -C "$source_dir" --exclude='./build*' --exclude=./.git --exclude=./data --exclude=./runs -ch . |
  DOCKER_BUILDKIT=0 "${docker[@]}" build --network=host "${build_arguments[@]}" -f $file -t "$image" - > "$log" 2>&1 ||
  fail "docker build"
seconds=$((SECONDS - start))
stage=$("${docker[@]}" images --filter dangling=true --format '{{.ID}}' | head -n 1)
echo "docker build: $seconds s; base $(size "$base")$([ $kind = cpu ] || echo ", with toolkit $(size toolkit:1)"), build stage $(size "$stage"), image $(size "$image"); $("${docker[@]}" info --format '{{.Driver}}'), $(du -sm "$work" | cut -f1) MB in use"

run() { "${docker[@]}" run --rm --network=host -v "$work/job:/work" "$@"; }
mkdir "$work/job"
tiny_run "$work/job"
chown -R 1000:1000 "$work/job"
cd "$work/job"
log=$work/run.log
run $image --version > "$log" 2>&1 && grep -q '^longnet [0-9]' "$log" || fail "longnet --version"
[ "$(run --entrypoint id $image -u)" = 1000 ] || fail "the image's user is not 1000"
if run --entrypoint sh $image -c 'command -v g++ cmake || ls /usr/include/mpi* /usr/lib/*/openmpi/include' > "$log" 2>&1; then
  fail "the image holds development tools"
fi
if [ $kind = cuda ]; then
  if run --entrypoint sh $image -c 'command -v nvcc ptxas || ls -d /usr/local/cuda* /usr/local/include/cu*' > "$log" 2>&1; then
    fail "the image holds the toolkit"
  fi
  # The program's libraries, and those that cuDNN and NVRTC load by themselves, with all that these need.
  run --entrypoint sh $image -c 'ldd /usr/local/bin/longnet /usr/local/lib/lib*.so.*' > "$log" 2>&1 || fail "ldd in the image"
  if grep -q 'not found' "$log"; then fail "a library is missing"; fi
  for library in cudart cublasLt nccl cudnn nvrtc; do
    grep -q "lib$library\.so.* => /usr/local/lib/" "$log" || fail "the program is not linked with the image's $library"
  done
  if grep -q 'libcuda\.so' "$log"; then fail "something is linked with the driver"; fi
  parts() { sed -nE 's/.*(lib(cudnn_|nvrtc-builtins\.so)[^ ]*[0-9])$/\1/p' | sort; }
  run --entrypoint ls $image -1 /usr/local/lib | parts > parts.image
  ls -1 "$toolkit/lib64" | parts > parts.toolkit
  [ "$(grep -c cudnn_ parts.image)" -ge 7 ] && diff parts.toolkit parts.image > "$log" || fail "parts of cuDNN or NVRTC"
  echo "libraries: all found, $(grep -c cudnn_ parts.image) parts of cuDNN"
fi
for ranks in 1 2; do
  if [ $ranks = 1 ]; then start_it=($image); else start_it=(--entrypoint mpirun $image -n 2 longnet); fi
  run -e OMP_NUM_THREADS=1 "${start_it[@]}" train tiny.yaml run.folder=image$ranks > "$log" 2>&1 ||
    fail "training on $ranks ranks"
  OMP_NUM_THREADS=1 "$source_dir/scripts/mpirun_local.sh" $ranks "$program" train tiny.yaml run.folder=direct$ranks \
    > "$work/direct.log" 2>&1 || { log=$work/direct.log; fail "training outside"; }
  losses image$ranks > image.losses; losses direct$ranks > direct.losses
  consecutive image.losses && [ "$(wc -l < image.losses)" = 12 ] || fail "not 12 steps"
  # Library versions inside and outside may differ, so digits may.
  difference=$(paste -d ' ' image.losses direct.losses |
    awk '{d = $2 - $4; if (d < 0) d = -d; if (d > m) m = d} END {printf "%.2g", m}')
  awk "BEGIN {exit !($difference <= 1e-4)}" || fail "losses on $ranks ranks differ by $difference from those outside"
  [ "$(stat -c %u image$ranks/metrics.jsonl)" = 1000 ] || fail "files do not belong to the image's user"
  echo "image, $ranks rank(s): 12 steps, last loss $(tail -n 1 image.losses | cut -d ' ' -f2), within $difference of the program outside"
done
if [ $kind = cuda ]; then
  for ranks in 1 2; do
    if [ $ranks = 1 ]; then start_it=($image); else start_it=(--entrypoint mpirun $image -n 2 longnet); fi
    run -e OMP_NUM_THREADS=1 "${start_it[@]}" train tiny.yaml run.folder=gpu$ranks run.backend=cuda > "$log" 2>&1; code=$?
    [ $code != 0 ] && [ "$(grep -c '^error' "$log")" = 1 ] && grep -q '^error.*no NVIDIA driver' "$log" && [ ! -e gpu$ranks ] ||
      fail "run.backend=cuda without a driver on $ranks ranks: exit code $code"
    echo "run.backend=cuda, $ranks rank(s): exit code $code, $(grep '^error' "$log")"
  done
fi
run $image train nosuch.yaml > "$log" 2>&1; code=$?
[ $code = 1 ] && grep -q '^error: ' "$log" || fail "a missing configuration: exit code $code"

# `docker kill -s USR1` saves and goes on, `docker stop` sends SIGTERM to the program, which saves and ends.
name=$("${docker[@]}" run -d --network=host -v "$work/job:/work" $image train tiny.yaml run.folder=stopped \
  train.steps=1000000 run.log_every=1000) || fail "docker run -d"
wait_for 30 test -s stopped/metrics.jsonl || { "${docker[@]}" logs "$name" 2>&1 | tail -n 5; fail "no first step"; }
"${docker[@]}" kill -s USR1 "$name" > /dev/null || fail "docker kill -s USR1"
wait_for 30 compgen -G 'stopped/step-*' > /dev/null || fail "no checkpoint after SIGUSR1"
saved=$(ls -d stopped/step-* | tail -n 1)
"${docker[@]}" stop -t 20 "$name" > /dev/null || fail "docker stop"
code=$("${docker[@]}" inspect --format '{{.State.ExitCode}}' "$name")
stopped=$(ls -d stopped/step-* | tail -n 1)
[ "$code" = 0 ] && [[ $stopped > $saved ]] || fail "docker stop: exit code $code, last checkpoint $stopped"
echo "SIGUSR1: $saved; docker stop: exit code 0, $stopped"
echo PASSED
