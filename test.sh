#!/usr/bin/env bash
# Installs what is missing, builds everything and runs the tests. See ./test.sh --help.
set -euo pipefail

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

usage() {
  cat <<'TEXT'
./test.sh [--quick | --layouts | --asan | --tsan | --all]

  (none)    release build with warnings as errors, all tests
  --quick   the same build, unit tests only
  --layouts the same build, all parallel layouts against one rank (half an hour)
  --asan    AddressSanitizer and UndefinedBehaviorSanitizer: the unit tests
  --tsan    ThreadSanitizer: the tests of comm and actors, where ranks are threads
  --all     release, --asan and --tsan
TEXT
}

test_release() {
  cmake --preset release -DTROUPE_TESTS=ON -DTROUPE_WERROR=ON
  cmake --build --preset release
  ctest --test-dir build/release -j2 --output-on-failure "$@"
}

test_asan() {
  cmake --preset asan -DTROUPE_TESTS=ON
  cmake --build --preset asan --target base_tests layers_tests comm_tests model_tests actors_tests \
    launcher_tests serve_tests fuzz_tests
  ctest --test-dir build/asan -j2 --output-on-failure -L unit
}

test_tsan() {
  cmake --preset tsan -DTROUPE_TESTS=ON
  cmake --build --preset tsan --target comm_tests actors_tests
  build/tsan/comm_tests
  build/tsan/actors_tests
}

(($# <= 1)) || { usage >&2 && exit 2; }
case ${1:-} in
  -h | --help) usage && exit 0 ;;
  "" | --all) tools/install_packages.sh --browser ;;
  --quick | --layouts | --asan | --tsan) tools/install_packages.sh ;;
  *) usage >&2 && exit 2 ;;
esac
case ${1:-} in
  "") test_release ;;
  --quick) test_release -L unit ;;
  --layouts) TROUPE_ALL_LAYOUTS=1 test_release -R '/LayoutMatrix\.|/OddWidths\.' ;;
  --asan) test_asan ;;
  --tsan) test_tsan ;;
  --all)
    test_release
    test_asan
    test_tsan
    ;;
esac
