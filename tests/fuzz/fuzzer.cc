// tests/fuzz/fuzzer.cc: libFuzzer's entry, for the target that TROUPE_FUZZ_TARGET names
// (tests/fuzz/run.sh). Without one it prints the names. With TROUPE_FUZZ_SEEDS it writes the
// target's corpus into that directory, and ends.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "tests/fuzz/corpus.h"
#include "tests/fuzz/targets.h"

namespace {

const troupe::fuzz::Target* chosen = nullptr;

void write_seeds(const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory);
  int number = 0;
  for (const std::string& input : troupe::fuzz::corpus(chosen->name))
    std::ofstream(directory / ("seed-" + std::to_string(number++)), std::ios::binary) << input;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* wanted = std::getenv("TROUPE_FUZZ_TARGET");
  for (const troupe::fuzz::Target& each : troupe::fuzz::targets()) {
    if (wanted == nullptr) std::puts(each.name);
    if (wanted != nullptr && std::string_view(wanted) == each.name) chosen = &each;
  }
  if (chosen == nullptr) std::exit(wanted == nullptr ? 0 : 2);
  if (const char* seeds = std::getenv("TROUPE_FUZZ_SEEDS")) {
    write_seeds(seeds);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  troupe::fuzz::run_target(*chosen, {reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
