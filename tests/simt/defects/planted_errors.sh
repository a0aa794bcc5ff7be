#!/usr/bin/env bash
# plant.py stops where a defect's text is not in its source exactly once, where two defects change the same text
# and where a catalogue has other keys; and the copy of a good one differs by its switch alone.
set -euo pipefail
plant=$(cd "$(dirname "$0")" && pwd)/plant.py
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src"
printf 'int a = one;\nint b = one;\nf();\ng(\n  two);\n' > "$work/src/x.cu"
failed=0
# defect NAME FIELDS...: a catalogue of one defect.
defect() {
  local name=$1; shift
  { printf '[[defect]]\nnumber = 3\nfile = "src/x.cu"\nwhat = "w"\nfound_by = "t"\n'; printf '%s\n' "$@"; } > "$work/$name.toml"
}
refused() { # refused WORDS CATALOGUE...
  local words=$1; shift
  if out=$(cd "$work" && python3 "$plant" --tree . --out out "$@" 2>&1) || ! grep -q -F -- "$words" <<< "$out"; then
    echo "not refused ($words): $out"; failed=1
  fi
}
defect gone 'original = "three"' 'planted = "4"'
defect twice 'original = "one"' 'planted = "4"'
defect inner 'within = "int a = one;"' 'original = "zero"' 'planted = "4"'
defect keys 'original = "two"' 'planted = "4"' 'colour = "red"'
defect half 'original = "two"'
defect call 'original = "f();"' 'planted = ""'
defect wide 'original = "one;\nf();"' 'planted = ""'
defect good 'within = "int a = one;"' 'original = "one"' 'planted = "4"'
defect lines 'original = "g(\n  two);"' 'planted = "g(\n 5);"'
refused '0 times' gone.toml
refused '2 times' twice.toml
refused '0 times' inner.toml
refused 'keys are' keys.toml
refused 'keys are' half.toml
refused 'change the same text' call.toml wide.toml
(cd "$work" && python3 "$plant" --tree . --out out good.toml call.toml lines.toml)
cat > "$work/expected" <<'END'
#line 1 "src/x.cu"
int a = (::longnet::simt::bug == 3 ? (4) : (one));
int b = one;
{ if (::longnet::simt::bug == 3) {  } else { f(); } }
{ if (::longnet::simt::bug == 3) { g(
 5); }
#line 4 "src/x.cu"
else { g(
  two); } }
END
diff "$work/expected" "$work/out/x.cu" || failed=1
exit $failed
