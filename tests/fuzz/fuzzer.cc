// tests/fuzz/fuzzer.cc: libFuzzer's entry. TROUPE_FUZZ_TARGET names the target
// (tests/fuzz/README.md).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const troupe::fuzz::Target* const target = [] {
    const char* wanted = std::getenv("TROUPE_FUZZ_TARGET");
    for (const troupe::fuzz::Target& each : troupe::fuzz::targets())
      if (wanted != nullptr && std::string_view(wanted) == each.name) return &each;
    std::fputs("set TROUPE_FUZZ_TARGET to the name of a directory in tests/fuzz/corpus\n", stderr);
    std::exit(2);
  }();
  troupe::fuzz::run_target(*target, {reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
