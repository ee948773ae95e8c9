#!/bin/sh
# tests/fuzz/run.sh [EXECUTIONS]: builds the fuzzer of the GGUF reader with clang's libFuzzer and the address and
# undefined-behaviour sanitizers into build/fuzz and runs it from the seeds, the corpus of earlier runs
# (build/fuzz/corpus) and all earlier findings (tests/fuzz/findings). SEED=n repeats a run.
# Exit status: 0 no finding, 1 a finding (its file is named; add it to tests/fuzz/findings), 77 clang is missing.
#
# tests/fuzz/run.sh coverage: the branch coverage of the reader over the same files, with llvm-cov.
set -eu
cd "$(dirname "$0")/../.."
executions=${1:-20000}

find_program() {
  for suffix in "" -20 -19 -18 -17 -16 -15 -14; do
    if command -v "$1$suffix" >/dev/null; then
      command -v "$1$suffix"
      return
    fi
  done
  echo "not run here: fuzzing of the GGUF reader needs $1 (clang 14 or newer with compiler-rt)" >&2
  exit 77
}

reader="csrc/gguf.cpp csrc/gguf_parser.cpp csrc/gguf_shards.cpp"
decoders="csrc/quant/floats.cpp csrc/quant/simple.cpp csrc/quant/kquants.cpp csrc/quant/kquants_low.cpp csrc/quant/codebook.cpp"
sources="$reader csrc/file.cpp csrc/quant/types.cpp $decoders"
flags="-std=c++20 -g1 -Wall -Wextra -Werror -Icsrc -Icsrc/include"
build=build/fuzz
mkdir -p $build/seeds $build/corpus $build/found tests/fuzz/findings
clang=$(find_program clang++)
# shellcheck disable=SC2086
$clang $flags -O1 tests/fuzz/seeds.cpp $sources -o $build/make_seeds
$build/make_seeds $build/seeds

if [ "$executions" = coverage ]; then
  profdata=$(find_program llvm-profdata)
  cov=$(find_program llvm-cov)
  # shellcheck disable=SC2086
  $clang $flags -O0 -fsanitize=fuzzer -fprofile-instr-generate -fcoverage-mapping tests/fuzz/fuzz_gguf.cpp $sources \
    -o $build/fuzz_gguf_coverage
  LLVM_PROFILE_FILE=$build/coverage.profraw $build/fuzz_gguf_coverage -runs=0 -max_len=8192 $build/seeds $build/corpus \
    tests/fuzz/findings 2>/dev/null
  "$profdata" merge -sparse $build/coverage.profraw -o $build/coverage.profdata
  "$cov" report $build/fuzz_gguf_coverage -instr-profile=$build/coverage.profdata $reader
  "$cov" show $build/fuzz_gguf_coverage -instr-profile=$build/coverage.profdata -show-branches=count $reader \
    >$build/coverage.txt
  echo "lines and branches: $build/coverage.txt"
  exit
fi

# shellcheck disable=SC2086
$clang $flags -O1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
  tests/fuzz/fuzz_gguf.cpp $sources -o $build/fuzz_gguf
log=$build/log.txt
status=0
$build/fuzz_gguf -runs="$executions" -seed="${SEED:-0}" -max_len=8192 -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=64 \
  -artifact_prefix=$build/found/ -print_final_stats=1 $build/corpus $build/seeds tests/fuzz/findings >$log 2>&1 || status=1
if [ $status -ne 0 ]; then
  tail -60 $log
  echo "FINDING: see $build/found and $log"
  exit 1
fi
count=$(sed -n 's/^stat::number_of_executed_units: *//p' $log)
speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' $log)
echo "fuzzed the GGUF reader: $count executions ($speed per second), 0 findings"
