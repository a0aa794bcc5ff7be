#!/bin/sh
# Prints the distribution's packages that hold the shared libraries of a program, one a line. The run stage of
# an image installs these and no -dev package, whatever the names are in this release of Debian or Ubuntu.
# Usage: docker/runtime_packages.sh PROGRAM    Skips libraries under /usr/local, which no package owns, and
# NVIDIA's, which docker/Dockerfile copies.
set -eu
if ldd "$1" | grep 'not found' >&2; then echo "runtime_packages: $1 needs libraries that are missing" >&2; exit 1; fi
for library in $(ldd "$1" | sed -nE 's/.* => (\/[^ ]+) .*/\1/p'); do
  real=$(readlink -f "$library")
  case $real in /usr/local/* | */libcuda* | */libcublas* | */libcudnn* | */libnccl* | */libnv*) continue ;; esac
  # Packages list files under /lib or /usr/lib, whichever they were built with.
  name=$(dpkg-query -S "$real" "${real#/usr}" 2> /dev/null | head -n 1 | cut -d: -f1)
  if [ -z "$name" ]; then echo "runtime_packages: no package holds $real" >&2; exit 1; fi
  echo "$name"
done | sort -u
