#!/usr/bin/env bash
# Makes data/gcide.txt: 40 MB of English prose, the GNU Collaborative International Dictionary of English,
# from the distribution's package dict-gcide. Usage: scripts/data_gcide.sh   Does nothing if it is there.
set -euo pipefail
[ $# = 0 ] || { echo "data_gcide: takes no arguments; usage: scripts/data_gcide.sh" >&2; exit 64; }
cd "$(dirname "$0")/.."
source scripts/distribution_package.sh
out=data/gcide.txt
if [ -s "$out" ]; then echo "$out exists ($(stat -c %s "$out") bytes)"; exit 0; fi
mkdir -p data
dictionary=/usr/share/dictd/gcide.dict.dz
if [ ! -r "$dictionary" ]; then
  unpack_package dict-gcide
  dictionary=$PACKAGE_ROOT/usr/share/dictd/gcide.dict.dz
fi
echo "unpacking $dictionary to $out"
zcat "$dictionary" > "$out.tmp"
mv "$out.tmp" "$out"
echo "$out: $(stat -c %s "$out") bytes"
