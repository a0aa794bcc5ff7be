#!/usr/bin/env bash
# Makes a corpus of real source code from the distribution's linux-source package: every .c and .h file
# in order of path, each followed by a zero byte. Whole files go to one of two parts, by the POSIX
# checksum of their path ("./drivers/..." and a newline), so the corpus is the same everywhere:
#   data/linux_train.txt        49 of 50 files
#   data/linux_validation.txt    1 of 50 files, none of which is in the training part
# Usage: scripts/data_linux_source.sh   Does nothing if both are there. Needs about 4 GB while it runs.
set -euo pipefail
[ $# = 0 ] || { echo "data_linux_source: takes no arguments; usage: scripts/data_linux_source.sh" >&2; exit 64; }
cd "$(dirname "$0")/.."
source scripts/distribution_package.sh
train=data/linux_train.txt validation=data/linux_validation.txt
if [ -s "$train" ] && [ -s "$validation" ]; then
  echo "$train and $validation exist"; exit 0
fi
for tool in xz perl tar; do
  command -v "$tool" > /dev/null || { echo "error: $tool is missing; install it" >&2; exit 1; }
done
mkdir -p data
archive=$(ls -1 /usr/src/linux-source-*.tar.xz 2> /dev/null | tail -n 1 || true)
if [ -z "$archive" ]; then
  # linux-source depends on the package of the actual version; that one holds the archive.
  package=$(apt-cache depends linux-source 2> /dev/null | awk '/Depends: linux-source-/ {print $2; exit}')
  unpack_package "${package:-linux-source-6.1}"
  archive=$(ls -1 "$PACKAGE_ROOT"/usr/src/linux-source-*.tar.xz | tail -n 1)
fi
echo "reading $archive"
tree=$(mktemp -d "$PWD/data/linux.XXXXXX")
trap 'rm -rf "$tree" "${PACKAGE_ROOT:-}"; rm -f "$train.$$" "$validation.$$"' EXIT
tar -C "$tree" --strip-components=1 --wildcards -xf "$archive" '*.c' '*.h'
# One process for all files: a shell loop that starts cksum and cat for each takes many minutes.
join_parts() {  # tree, train, validation; the sorted list of files on standard input
  perl -e '
    use strict; use warnings;
    my ($tree, $train, $validation) = @ARGV;
    my @table = map { my $r = $_ << 24;
      for (1 .. 8) { $r = (($r << 1) ^ ($r & 0x80000000 ? 0x04c11db7 : 0)) & 0xffffffff } $r } 0 .. 255;
    sub cksum {
      my ($text, $crc) = (shift, 0);
      my @bytes = unpack "C*", $text;
      for (my $n = @bytes; $n; $n >>= 8) { push @bytes, $n & 255 }
      $crc = (($crc << 8) & 0xffffffff) ^ $table[($crc >> 24) ^ $_] for @bytes;
      return ~$crc & 0xffffffff;
    }
    open my $out_train, ">:raw", $train or die "$train: $!\n";
    open my $out_validation, ">:raw", $validation or die "$validation: $!\n";
    local $/;
    for my $file (split /\n/, <STDIN>) {
      open my $in, "<:raw", "$tree/$file" or die "$file: $!\n";
      my $out = cksum("$file\n") % 50 == 0 ? $out_validation : $out_train;
      print $out scalar(<$in>) // "", "\0" or die "cannot write: $!\n";
    }
    close $_ or die "cannot write: $!\n" for $out_train, $out_validation;
  ' "$@"
}
(cd "$tree" && find . -type f \( -name '*.c' -o -name '*.h' \) | LC_ALL=C sort) |
  join_parts "$tree" "$train.$$" "$validation.$$"
mv "$validation.$$" "$validation"
mv "$train.$$" "$train"
echo "$train: $(stat -c %s "$train") bytes; $validation: $(stat -c %s "$validation") bytes"
