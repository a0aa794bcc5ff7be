#!/usr/bin/env bash
# scripts/check_docs.sh must pass a good folder of documents and refuse each planted error, naming it.
# Usage: tests/docs/planted_errors.sh
set -euo pipefail
check=$(cd "$(dirname "$0")/../.." && pwd)/scripts/check_docs.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# good: a small project with one link of each kind, one quote with a gap, one path, one comment, one figure.
good() {
  rm -rf "$work/p"; mkdir -p "$work/p/docs/figures" "$work/p/src"
  printf 'int f() {\n  return 1;\n}\n\nint g() {\n  return 2;\n}\n' > "$work/p/src/f.cpp"
  printf '# P\n\n[guide](docs/guide.md#the-parts) [site](https://example.org/none) `[no](link.md)`\n' \
    > "$work/p/README.md"
  printf '// See docs/guide.md.\nint h();\n' > "$work/p/src/h.h"
  printf 'print("<svg/>")\n' > "$work/p/docs/figures/make_a.py"
  printf '<svg/>\n' > "$work/p/docs/figures/a.svg"
  printf '# Changes\n\n`src/f.cpp`\n' > "$work/p/CHANGELOG.md"
  printf '# Guide\n\n## The parts\n\n[f](../src/f.cpp)\n\n<!-- quote: src/f.cpp -->\n```cpp\nint f() {\n...\nint g() {\n    return 2;\n```\n' \
    > "$work/p/docs/guide.md"
}

# refuses WHAT PATTERN: the check fails and says PATTERN.
refuses() {
  if out=$("$check" "$work/p" 2>&1); then
    echo "FAILED: $1: accepted"; failed=1
  elif ! grep -q -- "$2" <<< "$out"; then
    echo "FAILED: $1: said $out"; failed=1
  else
    echo "refused: $1: $(grep -m 1 -- "$2" <<< "$out")"
  fi
}

good; "$check" "$work/p" || { echo "FAILED: the good documents are refused"; failed=1; }
good; rm "$work/p/src/f.cpp"; touch "$work/p/src/g.cpp"
refuses "a link to a file that is gone" 'docs/guide.md:5: link to ../src/f.cpp'
good; sed -i 's/the-parts/the-part/' "$work/p/README.md"
refuses "a link to a heading that is gone" 'README.md:3: .*no heading #the-part '
good; sed -i 's/return 2/return 3/' "$work/p/src/f.cpp"
refuses "a quoted line that has changed" 'does not hold "return 2;"'
good; printf 'int g() {\n  return 2;\n}\nint f() {\n  return 1;\n}\n' > "$work/p/src/f.cpp"
refuses "quoted lines in another order" 'src/f.cpp does not hold'
good; sed -i 's/^```cpp$/text\n```cpp/' "$work/p/docs/guide.md"
refuses "a quote mark without its block" 'must follow "quote: src/f.cpp"'
good; sed -i 's#quote: src/f.cpp#quote: src/h.cpp#' "$work/p/docs/guide.md"
refuses "a quote of no file" 'quotes src/h.cpp, which is no file'
good; sed -i 's#src/f.cpp#src/gone.cpp#' "$work/p/CHANGELOG.md"
refuses "a path that is gone" 'CHANGELOG.md:3: `src/gone.cpp` does not exist'
good; sed -i 's#docs/guide.md#docs/gone.md#' "$work/p/src/h.h"
refuses "a comment that names a file that is gone" 'src/h.h:1: docs/gone.md does not exist'
good; printf '<svg></svg>\n' > "$work/p/docs/figures/a.svg"
refuses "a figure that its script does not draw" 'docs/figures/a.svg: differs'
good; rm "$work/p/docs/figures/make_a.py"
refuses "a figure without a script" 'there is no docs/figures/make_a.py'
exit $failed
