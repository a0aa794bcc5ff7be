#!/usr/bin/env bash
# Builds docker/cpu.Dockerfile with a Docker daemon of its own and runs the image as its user: version, training
# on one rank and under mpirun on two, the same losses as the program outside, saving at `docker stop`.
# Usage: tests/launch/image.sh PROGRAM    BASE_IMAGE=name: pulled; BASE_ROOTFS=folder: a Debian 12 there; default:
# one made by debootstrap, for which no registry is needed. Installs docker.io and debootstrap where they are missing. Exits 77 where that
# cannot be done. Takes 4 GB in the temporary folder while it runs and about ten minutes on two cores.
set -uo pipefail
program=$(realpath "$1")
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
source "$source_dir/tests/launch/common.sh"
log=
[ "$(id -u)" = 0 ] || skip "starting a Docker daemon needs root"
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

log=$work/build.log
start=$SECONDS
DOCKER_BUILDKIT=0 "${docker[@]}" build --network=host --build-arg BASE_IMAGE="$base" \
  -f "$source_dir/docker/cpu.Dockerfile" -t longnet:cpu "$source_dir" > "$log" 2>&1 || fail "docker build"
stage=$("${docker[@]}" images --filter dangling=true --format '{{.ID}}' | head -n 1)
echo "docker build: $((SECONDS - start)) s; base $(size "$base"), build stage $(size "$stage"), image $(size longnet:cpu)"

run() { "${docker[@]}" run --rm --network=host -v "$work/job:/work" "$@"; }
mkdir "$work/job"
tiny_run "$work/job"
chown -R 1000:1000 "$work/job"
cd "$work/job"
log=$work/run.log
run longnet:cpu --version > "$log" 2>&1 && grep -q '^longnet [0-9]' "$log" || fail "longnet --version"
[ "$(run --entrypoint id longnet:cpu -u)" = 1000 ] || fail "the image's user is not 1000"
if run --entrypoint sh longnet:cpu -c 'command -v g++ cmake || ls /usr/include/mpi* /usr/lib/*/openmpi/include' > "$log" 2>&1; then
  fail "the image holds development tools"
fi
for ranks in 1 2; do
  if [ $ranks = 1 ]; then start_it=(longnet:cpu); else start_it=(--entrypoint mpirun longnet:cpu -n 2 longnet); fi
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
run longnet:cpu train nosuch.yaml > "$log" 2>&1; code=$?
[ $code = 1 ] && grep -q '^error: ' "$log" || fail "a missing configuration: exit code $code"

# `docker kill -s USR1` saves and goes on, `docker stop` sends SIGTERM to the program, which saves and ends.
name=$("${docker[@]}" run -d --network=host -v "$work/job:/work" longnet:cpu train tiny.yaml run.folder=stopped \
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
