// bench/bench_tokenizer.cc: how many megabytes of text a tokenizer encodes in a second, one thread.
//
//   bench_tokenizer DIR TEXT_FILE [REPEAT]
//
// DIR holds the tokenizer's files. Prints one JSON line: the median over REPEAT passes (default 9)
// and the fastest, and that decoding gives back the text.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.h"
#include "model/tokenizer.h"

namespace troupe::model {
namespace {

int run(const std::string& directory, const std::string& text_file, size_t repeat) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  std::ifstream file(text_file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto load_start = Clock::now();
  const Tokenizer tokenizer{std::filesystem::path(directory)};
  const double load_s = since(load_start);
  std::vector<double> seconds;
  std::vector<int32_t> ids;
  for (size_t i = 0; i < repeat; ++i) {
    const auto start = Clock::now();
    ids = tokenizer.encode(text, false);
    seconds.push_back(since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  const double megabytes = static_cast<double>(text.size()) * 1e-6;
  fmt::print(
      "{{\"text_mb\": {:.2f}, \"tokens\": {}, \"mb_per_s\": {:.1f}, \"best_mb_per_s\": {:.1f}, "
      "\"load_s\": {:.2f}, \"round_trip\": {}}}\n",
      megabytes, ids.size(), megabytes / seconds[repeat / 2], megabytes / seconds[0], load_s,
      tokenizer.decode(ids, false) == text);
  return 0;
}

}  // namespace
}  // namespace troupe::model

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    fmt::print(stderr, "usage: bench_tokenizer DIR TEXT_FILE [REPEAT]\n");
    return 2;
  }
  try {
    const int repeat = argc == 4 ? std::atoi(argv[3]) : 9;
    return troupe::model::run(argv[1], argv[2], static_cast<size_t>(std::max(1, repeat)));
  } catch (const troupe::UserError& error) {
    fmt::print(stderr, "bench_tokenizer: {}\n", error.what());
    return 2;
  }
}
