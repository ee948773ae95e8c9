#!/bin/sh
# The engine for 64-bit ARM, on any machine: cross-compiles library, tests and tools into build/arm and runs the C++ tests
# under qemu - every kernel row on a processor that has all extensions, then a forward pass on processors that lack some,
# so that a row is neither chosen nor executed where it must not be. Correctness only: speeds under qemu mean nothing.
# Exit status: 0 all passed, 1 a failure, 77 not run here. On Debian: apt install g++-aarch64-linux-gnu qemu-user cmake
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/arm
mkdir -p "$root/build"
jobs=$(nproc)

for program in cmake aarch64-linux-gnu-gcc aarch64-linux-gnu-g++ qemu-aarch64; do
  if ! command -v $program >/dev/null; then
    echo "ARM tests: not run here ($program not found)"
    exit 77
  fi
done

rm -f "$build/CMakeCache.txt" # where a compiler has moved, CMake would forget what system it builds for
cmake -S "$root/csrc" -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DLD_TESTS=ON -DLD_WERROR=ON >"$build.log" 2>&1 &&
  cmake --build "$build" --parallel "$jobs" >>"$build.log" 2>&1 || {
  tail -n 40 "$build.log"
  echo "ARM tests: the build failed, see $build.log"
  exit 1
}

export QEMU_LD_PREFIX="${QEMU_LD_PREFIX:-/usr/aarch64-linux-gnu}"
cd "$root"
# Arguments: processor, program, cases. One line per program; what it printed is shown where it failed.
one='
  processor=$1 program=$2
  name=$(basename "$program")
  shift 2
  status=0
  qemu-aarch64 -cpu "$processor" "$program" "$@" >"$program.$processor.log" 2>&1 || status=$?
  case $status in
    0) echo "ok $name ($processor): $(tail -n 1 "$program.$processor.log")" ;;
    77) echo "not run here: $name ($processor)" ;;
    *) cat "$program.$processor.log"; echo "FAILED $name ($processor), status $status" ;;
  esac'
results=$(
  {
    for program in "$build"/test_*; do
      case $program in
        *.log) ;;
        # Without no_memory, which fills the address space: qemu would keep tables of all of it.
        */test_file) echo "max $program both_ways_of_access paths_that_are_no_model no_permission" ;;
        *) echo "max $program" ;;
      esac
    done
    echo "cortex-a76 $build/test_forward" # sdot without smmla
    echo "cortex-a57 $build/test_forward" # neither
  } | xargs -P "$jobs" -L 1 sh -c "$one" arm
  echo "not run here: test_file no_memory (qemu)"
)
echo "$results"
count() { echo "$results" | grep -c "^$1" || true; }
echo "ARM tests: $(count 'ok ') programs passed, $(count FAILED) failed, $(count 'not run here') not run here"
[ "$(count FAILED)" = 0 ]
