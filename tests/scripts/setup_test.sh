#!/usr/bin/env bash
# scripts/setup.sh, build.sh and mpirun_settings.sh with stand-ins for dpkg-query, apt-get, cmake and mpirun:
# which packages are asked for, with which options a folder is configured, how the build is counted, and which
# mpirun starts a program. Usage: tests/scripts/setup_test.sh    Installs and builds nothing.
set -uo pipefail
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bad=0
check() { if ! eval "$2"; then echo "FAILED: $1"; sed 's/^/  | /' "$work/log"; bad=1; fi; }
mkdir -p "$work/tree" "$work/tools"
cp -r "$source_dir/scripts" "$work/tree/"
cd "$work/tree" || exit 1
tool() { cat > "$work/tools/$1"; chmod +x "$work/tools/$1"; }
tool dpkg-query <<< 'exit 1'
tool python3 <<< 'exit 1'  # no pip: nothing is fetched
tool sudo <<< '"$@"'
tool apt-get <<< '[ "$1" != install ] || printf "%s\n" "$@" >> "$ASKED"'
tool cmake <<'S'
printf '%s\n' "$@" >> "$ASKED"
[ "$1" = --build ] || exit 0
for i in 1 2 3; do printf '[%d/3] Building CXX object a%d.o\n' $i $i; done
if [ -n "${BREAK:-}" ]; then echo 'a.cpp:1: error: broken'; exit 1; fi
S
export PATH="$work/tools:$PATH" ASKED="$work/asked"
run() { : > "$ASKED"; "$@" > "$work/log" 2>&1; code=$?; }
asked() { grep -q -x -e "$1" "$ASKED"; }
says() { grep -q -E "$1" "$work/log"; }

for what in "" program cuda; do
  run scripts/setup.sh $what
  check "setup.sh $what installs the compiler" '[ $code = 0 ] && asked g++ && asked libopenmpi-dev'
  check "setup.sh $what installs nothing of the tests" '! grep -qE "gtest|gmock|benchmark|boost|python|ccache" "$ASKED"'
done
run scripts/setup.sh tests
check "setup.sh tests" '[ $code = 0 ] && asked g++ && asked libgtest-dev && asked libboost-context-dev && asked python3'
CUDA_HOME=/nowhere PATH="$work/tools:/usr/bin:/bin" run scripts/setup.sh tests
check "without cuda nothing is said about it" '! says cudnn'
run scripts/setup.sh everything
check "an unknown word" '[ $code = 64 ] && says "everything.*usage: scripts/setup.sh" && [ ! -s "$ASKED" ]'

run scripts/build.sh
check "no preset" '[ $code = 64 ] && says "usage: scripts/build.sh"'
run scripts/build.sh gpu
check "no such preset" '[ $code = 64 ] && says "\"gpu\" is no preset" && [ ! -s "$ASKED" ]'
run scripts/build.sh cpu programm
check "a mistyped word" '[ $code = 64 ] && says "programm" && [ ! -s "$ASKED" ]'
run scripts/build.sh cpu program -DX=1
check "a fresh folder, program" '[ $code = 0 ] && asked -DLN_TESTS=OFF && asked -DLN_BENCH=OFF && asked -DX=1 && asked longnet_program'
check "count" 'says "^build: 1 of 3 files$" && says "up to date"'
run scripts/build.sh cpu -DLN_WERROR=ON
check "all after the program" '[ $code = 0 ] && asked -DLN_TESTS=ON && asked -DLN_BENCH=ON && ! asked --target'
mkdir -p build; touch build/build.ninja; echo 'LN_TESTS:BOOL=ON' > build/CMakeCache.txt
run scripts/build.sh cpu program
check "a folder with tests keeps them" '[ $code = 0 ] && ! grep -q LN_TESTS "$ASKED" && asked longnet_program'
rm build/build.ninja
run scripts/build.sh cpu program
check "a folder whose set-up failed" 'asked -DLN_TESTS=OFF'
BREAK=1 run scripts/build.sh cpu program
check "a broken build" '[ $code = 1 ] && says "preset cpu failed" && says "a.cpp:1: error: broken" && ! says "up to date"'
if command -v script > /dev/null; then
  run script -q -e -c 'scripts/build.sh cpu program' /dev/null
  check "count on a terminal" '[ $code = 0 ] && tr "\r" "\n" < "$work/log" | grep -q "^build: 3 of 3 files$"'
fi

# ldd says which MPI a program is linked with; each mpirun says whose it is and how it was called.
tool ldd <<< 'case $1 in *mpich_program) echo "libmpich.so.12 => x" ;; *) echo "libmpi.so.40 => x" ;; esac'
tool mpich_program <<< true
tool open_program <<< true
tool mpirun <<< '[ "$1" = --version ] && echo "mpirun (Open MPI) 4.1.4" || echo "open $*"'
tool mpirun.mpich <<< '[ "$1" = --version ] && echo "HYDRA build details:" || echo "mpich $*"'
run scripts/mpirun_local.sh 2 open_program x
check "Open MPI" 'says "^open --oversubscribe --bind-to none -n 2 open_program x$"'
run scripts/mpirun_local.sh 2 mpich_program x
check "MPICH" 'says "^mpich -bind-to none -n 2 mpich_program x$"'
LN_MPIEXEC=mpirun.mpich run scripts/mpirun_local.sh 2 open_program x
check "LN_MPIEXEC" 'says "^mpich "'
echo "h slots=2" > hosts
run scripts/launch_mpirun.sh hosts 2 mpich_program x
check "several hosts with MPICH" '[ $code = 64 ] && says "mpirun.mpich is not Open MPI"'
rm "$work/tools/mpirun.mpich"
mkdir "$work/bare"
for name in bash env dirname basename nproc id ldd grep head; do ln -s "$(command -v $name)" "$work/bare/$name"; done
cp "$work/tools"/{ldd,mpich_program,mpirun} "$work/bare/" 2> /dev/null
PATH=$work/bare run scripts/mpirun_local.sh 2 mpich_program x
check "the other MPI's mpirun alone" '[ $code = 127 ] && says "no mpirun for mpich_program" && ! says "^open"'
[ $bad = 0 ] && echo "set-up, build and launch scripts: as they should be"
exit $bad
