#!/bin/sh
# tests/fuzz/run.sh [EXECUTIONS]: builds the fuzzers of the GGUF reader with clang's libFuzzer and the address and
# undefined-behaviour sanitizers into build/fuzz and runs them: fuzz_gguf (one file, also taken for an adapter) as often
# as said, fuzz_parts (models in two parts, which are files) a tenth of that. They start from the seeds, the corpora of
# earlier runs (build/fuzz/corpus*) and all earlier findings (tests/fuzz/findings). SEED=n repeats a run.
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

reader="csrc/gguf.cpp csrc/gguf_parser.cpp csrc/gguf_shards.cpp csrc/adapter.cpp"
decoders="csrc/quant/floats.cpp csrc/quant/simple.cpp csrc/quant/kquants.cpp csrc/quant/kquants_low.cpp csrc/quant/codebook.cpp"
sources="$reader csrc/file.cpp csrc/quant/types.cpp $decoders"
flags="-std=c++20 -g1 -Wall -Wextra -Werror -Icsrc -Icsrc/include"
build=build/fuzz
mkdir -p $build/seeds $build/seeds_parts $build/corpus $build/corpus_parts $build/found tests/fuzz/findings
FUZZ_FOLDER=$(mktemp -d -p "$(test -d /dev/shm && echo /dev/shm || echo $build)")
export FUZZ_FOLDER
trap 'rm -rf "$FUZZ_FOLDER"' EXIT
clang=$(find_program clang++)
# shellcheck disable=SC2086
$clang $flags -O1 tests/fuzz/seeds.cpp $sources -o $build/make_seeds
$build/make_seeds $build/seeds $build/seeds_parts

if [ "$executions" = coverage ]; then
  profdata=$(find_program llvm-profdata)
  cov=$(find_program llvm-cov)
  for target in gguf parts; do
    case $target in gguf) inputs="$build/seeds $build/corpus tests/fuzz/findings" ;; *) inputs="$build/seeds_parts $build/corpus_parts" ;; esac
    # shellcheck disable=SC2086
    $clang $flags -O0 -fsanitize=fuzzer -fprofile-instr-generate -fcoverage-mapping tests/fuzz/fuzz_$target.cpp $sources \
      -o $build/coverage_$target
    # shellcheck disable=SC2086
    LLVM_PROFILE_FILE=$build/coverage_$target.profraw $build/coverage_$target -runs=0 -max_len=16384 $inputs 2>/dev/null
  done
  "$profdata" merge -sparse $build/coverage_gguf.profraw $build/coverage_parts.profraw -o $build/coverage.profdata
  both="$build/coverage_gguf -object $build/coverage_parts -instr-profile=$build/coverage.profdata"
  # shellcheck disable=SC2086
  "$cov" report $both $reader
  # shellcheck disable=SC2086
  "$cov" show $both -show-branches=count $reader >$build/coverage.txt
  echo "lines and branches: $build/coverage.txt"
  exit
fi

# Arguments: target, executions, longest input, folders to start from; what is new goes to the first folder.
fuzz() {
  target=$1 count=$2 longest=$3
  shift 3
  # shellcheck disable=SC2086
  $clang $flags -O1 -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    "tests/fuzz/fuzz_$target.cpp" $sources -o "$build/fuzz_$target"
  log=$build/log_$target.txt
  status=0
  "$build/fuzz_$target" -runs="$count" -seed="${SEED:-0}" -max_len="$longest" -timeout=5 -rss_limit_mb=1024 \
    -malloc_limit_mb=64 -artifact_prefix=$build/found/ -print_final_stats=1 "$@" >"$log" 2>&1 || status=1
  if [ $status -ne 0 ]; then
    tail -60 "$log"
    echo "FINDING: see $build/found and $log"
    exit 1
  fi
  made=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  speed=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  echo "fuzz_$target: $made executions ($speed per second), 0 findings"
}

fuzz gguf "$executions" 8192 $build/corpus $build/seeds tests/fuzz/findings
fuzz parts $((executions / 10)) 16384 $build/corpus_parts $build/seeds_parts
