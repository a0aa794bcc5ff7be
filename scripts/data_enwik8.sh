#!/usr/bin/env bash
# Downloads enwik8 (the first 10^8 bytes of an English Wikipedia dump, http://mattmahoney.net/dc/textdata.html),
# checks it and makes data/enwik8, which `configs/enwik8.yaml` reads as it is. Usage: scripts/data_enwik8.sh
set -euo pipefail
[ $# = 0 ] || { echo "data_enwik8: takes no arguments; usage: scripts/data_enwik8.sh" >&2; exit 64; }
cd "$(dirname "$0")/.."
out=data/enwik8
sha1=57b8363b814821dc9d47aa4d41f58733519076b2
if [ -s "$out" ]; then echo "$out exists"; exit 0; fi
mkdir -p data
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
url=http://mattmahoney.net/dc/enwik8.zip
if command -v curl > /dev/null; then fetch=(curl -fL --connect-timeout 20 -o "$work/enwik8.zip" "$url")
elif command -v wget > /dev/null; then fetch=(wget -T 20 -t 2 -O "$work/enwik8.zip" "$url")
else echo "error: neither curl nor wget is installed" >&2; exit 1; fi
if ! "${fetch[@]}"; then
  echo "error: enwik8 cannot be downloaded; without internet use scripts/data_gcide.sh, or put the file at $out yourself" >&2
  exit 1
fi
if command -v unzip > /dev/null; then unzip -p "$work/enwik8.zip" enwik8 > "$work/enwik8"
else python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("enwik8"))' "$work/enwik8.zip" > "$work/enwik8"; fi
found=$(sha1sum "$work/enwik8" | cut -d' ' -f1)
if [ "$found" != "$sha1" ]; then
  echo "error: the download's SHA-1 is $found, enwik8's is $sha1; try again" >&2; exit 1
fi
cp "$work/enwik8" "$out.tmp"
mv "$out.tmp" "$out"
echo "$out: $(stat -c %s "$out") bytes"
