#!/usr/bin/env bash
# The README's two commands on a fresh Debian 13 (GCC 14, Open MPI 5, oneDNN 3), in a chroot that debootstrap
# makes: scripts/quickstart.sh to its sample, then scripts/test.sh with warnings as errors. Prints versions and times.
# Usage: tests/launch/debian13.sh [PROGRAM] [SUITE]    PROGRAM is not used; SUITE: trixie unless named. Exits 77
# where it cannot be done. An hour on two cores, 4 GB in the temporary folder.
#   LN_ONLY=quickstart  without scripts/test.sh
#   BASE_ROOTFS=folder  a Debian of that suite, copied, instead of debootstrap
set -uo pipefail
suite=${2:-trixie}
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
source "$source_dir/tests/launch/common.sh"
log=
[ "$(id -u)" = 0 ] || skip "a chroot needs root"
if [ -z "${BASE_ROOTFS:-}" ] && ! command -v debootstrap > /dev/null; then
  command -v apt-get > /dev/null || skip "no debootstrap and no apt-get here"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap; } > /dev/null 2>&1 ||
    skip "cannot install debootstrap"
fi
work=$(mktemp -d)
root=$work/root
cleanup() {
  # What is mounted below must be gone before anything is removed: /dev is this machine's.
  awk -v w="$work/" 'index($2, w) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l
  if grep -q " $work/" /proc/mounts; then echo "left behind: $work" >&2; else rm -rf --one-file-system "$work"; fi
}
trap cleanup EXIT
log=$work/log
if [ -n "${BASE_ROOTFS:-}" ]; then
  mkdir "$root" && tar -C "$BASE_ROOTFS" --one-file-system --exclude=./proc --exclude=./sys --exclude=./dev -c . | tar -C "$root" -x ||
    fail "copying $BASE_ROOTFS"
  mkdir -p "$root"/{proc,sys,dev}
else
  debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" > "$log" 2>&1 ||
    { tail -n 3 "$log"; skip "debootstrap cannot make $suite"; }
fi
cp /etc/resolv.conf "$root/etc/resolv.conf"
{ mount -t proc proc "$root/proc" && mount -t sysfs sysfs "$root/sys" &&
  mount --rbind /dev "$root/dev" && mount --make-rslave "$root/dev"; } > "$log" 2>&1 || skip "cannot mount /proc, /sys, /dev in a chroot"
mkdir -p "$root/src/longnet"
tar -C "$source_dir" --exclude='./build*' --exclude=./data --exclude=./runs --exclude=./third_party -c . |
  tar -C "$root/src/longnet" -x --no-same-owner || fail "copying the tree"
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 bash -c "cd /src/longnet && $1"; }

start=$SECONDS
inside scripts/quickstart.sh > "$log" 2>&1 || fail "scripts/quickstart.sh"
grep -q 'step 1000/1000: loss' "$log" && grep -q '^131072 tokens: loss' "$log" || fail "quickstart's lines"
echo "scripts/quickstart.sh: $((SECONDS - start)) s"
grep -E '^(setup|build: (preset|[0-9]+ of)|131072 tokens)|step (1|1000)/1000:' "$log" | cut -c 1-130
inside "cat /etc/debian_version; dpkg-query -W -f='\${Package} \${Version}\n' g++ cmake libopenmpi-dev libdnnl-dev libfmt-dev libspdlog-dev" |
  paste -s -d ' ' | fold -s -w 115
[ "${LN_ONLY:-}" != quickstart ] || { echo PASSED; exit 0; }
start=$SECONDS
inside scripts/test.sh > "$log" 2>&1; code=$?
tail -n 1 "$log"
[ $code = 0 ] && tail -n 1 "$log" | grep -q -E '^[1-9][0-9]* passed, 0 failed$' ||
  { grep -E '^(FAILED|build: )|Failed' "$log" | head -n 20; fail "scripts/test.sh: exit code $code"; }
echo "scripts/test.sh: $((SECONDS - start)) s"
echo PASSED
