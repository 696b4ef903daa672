#!/usr/bin/env bash
# Builds the fuzzer (preset `fuzz`) and lets libFuzzer look for faults in every target, or in those named.
set -euo pipefail

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

usage() {
  cat <<'TEXT'
tests/fuzz/run.sh [--seconds N] [--no-build] [TARGET ...]

  --seconds N   for each target (60)
  TARGET        of `build/fuzz/fuzzer`, which prints their names; default: all

Goes on with what it has found before, in build/fuzz/corpus. Prints a line for each target: its executions,
the edges of the program that they covered, how many inputs it keeps for them. An input that breaks something
is left in build/fuzz/found, and the exit status is 1. Needs clang++ and its run-time libraries:
apt-get install clang libclang-rt-14-dev
TEXT
}

seconds=60 build=true targets=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --seconds) seconds=${2:?--seconds needs a number} && shift ;;
    --no-build) build=false ;;
    -*) usage >&2 && exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done

if $build; then
  command -v clang++ >/dev/null || { echo "run.sh: no clang++ (see --help)" >&2 && exit 2; }
  cmake --preset fuzz -DTROUPE_TESTS=ON
  cmake --build --preset fuzz
fi
fuzzer=build/fuzz/fuzzer
((${#targets[@]})) || mapfile -t targets < <($fuzzer)
mkdir -p build/fuzz/found

printf '%-18s %12s %8s %8s\n' target executions edges inputs
status=0
for target in "${targets[@]}"; do
  inputs=build/fuzz/corpus/$target log=build/fuzz/$target.log
  TROUPE_FUZZ_TARGET=$target TROUPE_FUZZ_SEEDS=$inputs $fuzzer || { echo "run.sh: no target $target" >&2 && exit 2; }
  # The largest inputs of the corpus are 40 KB; long ones are slow and find nothing that short ones do not.
  TROUPE_FUZZ_TARGET=$target $fuzzer -max_len=4096 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=2048 \
    -max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="build/fuzz/found/$target-" \
    "$inputs" >"$log" 2>&1 || { status=1 && echo "$target: see $log" >&2; }
  awk -v target="$target" '
    / cov: / { for (i = 1; i < NF; ++i) { if ($i == "cov:") cov = $(i + 1); if ($i == "corp:") corp = $(i + 1) } }
    /number_of_executed_units/ { runs = $2 }
    END { split(corp, inputs, "/"); printf "%-18s %12d %8d %8d\n", target, runs, cov, inputs[1] }' "$log"
done
exit $status
