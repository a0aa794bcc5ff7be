#!/usr/bin/env bash
# scripts/check_spills.sh --report must pass a report that fits its sources, and refuse each planted error, naming
# it. A stand-in for nvcc makes the report, so none is needed. Usage: tests/ptxas/planted_errors.sh
set -euo pipefail
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
cd "$work"
mkdir -p scripts src/kernels/a src/core
cp "$source_dir/scripts/check_spills.sh" scripts/
# Prints what nvcc and ptxas would, with the registers and spills that the source asks for, and counts its calls.
cat > nvcc <<'N'
#!/usr/bin/env bash
if [ "$1" = --version ]; then printf 'a\nCuda compilation tools, a stand-in\nb\n'; exit; fi
while [ $# -gt 0 ]; do case $1 in -c) file=$2 ;; -gencode=*) target=${1##*code=} ;; esac; shift; done
echo "$file" >> calls
grep -q broken "$file" && { echo "$file(1): error: broken"; exit 2; }
grep -o 'kernel_[a-z]*' "$file" | sort -u | while read -r kernel; do
  echo "ptxas info    : Compiling entry function '$kernel' for '$target'"
  echo "    0 bytes stack frame, $(sed -nE 's/.*spills ([0-9]+).*/\1/p' "$file" | grep . || echo 0) bytes spill stores, 0 bytes spill loads"
  echo "ptxas info    : Used 40 registers, used 0 barriers, 380 bytes cmem[0]"
done
N
chmod +x nvcc
export NVCC=$work/nvcc
report=bench/results/ptxas.txt

good() {
  rm -rf src bench calls; mkdir -p src/kernels/a src/core
  printf '#include "core/c.h"\n#include "kernels/a/a.h"\n__global__ void kernel_a() {}\n' > src/kernels/a/a_cuda.cu
  printf '__global__ void kernel_b() {}\n__global__ void kernel_c() {}\n' > src/kernels/a/b_cuda.cu
  printf '#include "kernels/a/deep.h"\n' > src/kernels/a/a.h
  printf 'constexpr int kTile = 32;  // rows\n' > src/kernels/a/deep.h
  printf 'int host();\n' > src/core/c.h
  scripts/check_spills.sh > made.log 2>&1 || { cat made.log; echo "FAILED: the report cannot be made"; exit 1; }
}
check() { scripts/check_spills.sh --report > check.log 2>&1; }
# accepts WHAT / refuses WHAT PATTERN: what the check says of the folder as it is.
accepts() { check || { echo "FAILED: $1: refused: $(cat check.log)"; failed=1; }; }
refuses() {
  if check; then
    echo "FAILED: $1: accepted"; failed=1
  elif ! grep -q -- "$2" check.log; then
    echo "FAILED: $1: said $(cat check.log)"; failed=1
  else
    echo "refused: $1: $(grep -m 1 -- "$2" check.log)"
  fi
}
# compiles N WHAT: the next making calls the compiler N times.
compiles() {
  local want=$1; shift
  rm -f calls; scripts/check_spills.sh > made.log 2>&1 || true
  local n; n=$({ cat calls 2> /dev/null || true; } | wc -l)
  [ "$n" = "$want" ] || { echo "FAILED: $*: $n compilations, not $want"; failed=1; }
}

good; accepts "a report of its tree"
grep -q 'kernel_a .*registers: sm_80 40 sm_90a 40' check.log || { echo "FAILED: no registers in: $(cat check.log)"; failed=1; }
compiles 0 "nothing has changed"
good; echo '  // a remark' >> src/kernels/a/deep.h; echo 'int more();' >> src/core/c.h
accepts "a remark and a host header"
good; sed -i 's/32/64/' src/kernels/a/deep.h
refuses "a changed header of a header" 'a_cuda.cu or a header of it has changed'
compiles 2 "one changed file"; accepts "made anew"
good; echo 'int x;' >> src/kernels/a/b_cuda.cu
refuses "a changed file" 'b_cuda.cu or a header of it has changed'
good; cp src/kernels/a/b_cuda.cu src/kernels/a/new_cuda.cu
refuses "a new file" 'new_cuda.cu is not in'
good; rm src/kernels/a/b_cuda.cu
refuses "a file that is gone" 'b_cuda.cu, which is gone'
good; sed -i '/^b_cuda.cu sm_90a/d' $report
refuses "a target left out" 'no kernel of src/kernels/a/b_cuda.cu for sm_90a'
good; sed -i '2s/-O3/-O1/' $report
refuses "a report made with other flags" 'other flags'
compiles 4 "other flags"
good; echo '// spills 8' >> src/kernels/a/b_cuda.cu; touch calls
if scripts/check_spills.sh src/kernels/a/b_cuda.cu > made.log 2>&1; then echo "FAILED: spills pass while compiling"; failed=1; fi
refuses "a kernel that spills" 'spills: b_cuda.cu sm_80 40 0 8 0 kernel_b'
good; echo 'broken' >> src/kernels/a/b_cuda.cu; echo 'int x;' >> src/kernels/a/a_cuda.cu
if scripts/check_spills.sh > made.log 2>&1; then echo "FAILED: a file that does not compile passes"; failed=1; fi
grep -q 'b_cuda.cu does not compile for sm_' made.log || { echo "FAILED: said $(cat made.log)"; failed=1; }
rm -r bench; refuses "no report" 'there is no bench/results/ptxas.txt'
exit $failed
