// Replays the corpus of each target, and mutations of it from a fixed seed: 400, or as many as
// TROUPE_FUZZ_MUTATIONS says.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tests/fuzz/corpus.h"
#include "tests/fuzz/targets.h"

namespace troupe::fuzz {

void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

namespace {

// One of the changes that find most: bytes, stretches, numbers at their ends.
std::string mutated(std::string text, const std::vector<std::string>& inputs,
                    std::mt19937& random) {
  const auto below = [&](size_t end) { return end == 0 ? 0 : random() % end; };
  static const std::string kPieces[] = {
      "-1", "1e999", "18446744073709551615", "9223372036854775807", "null", "[",  "{", "\"",
      "]",  "}",     std::string(8, '\xff'), std::string(4, '\0'),  "{{",   "%}", "0", "\xc3"};
  for (size_t changes = 1 + below(4); changes > 0; --changes) {
    const size_t at = below(text.size() + 1), length = below(16);
    switch (below(6)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(random());
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, kPieces[below(std::size(kPieces))]);
        break;
      case 3:
        text.replace(at, std::min(length, text.size() - at), kPieces[below(std::size(kPieces))]);
        break;
      case 4:
        text.insert(at, text.substr(below(text.size() + 1), 4 * length));
        break;
      default: {
        const std::string& other = inputs[below(inputs.size())];
        text.insert(at, other.substr(below(other.size() + 1), 4 * length));
      }
    }
  }
  return text;
}

int num_mutations() {
  const char* wanted = std::getenv("TROUPE_FUZZ_MUTATIONS");
  return wanted == nullptr ? 400 : std::max(1, std::atoi(wanted));
}

class Fuzz : public testing::TestWithParam<Target> {
 protected:
  static bool run(const std::string& text) {
    return run_target(GetParam(), std::as_bytes(std::span(text)));
  }
};

TEST_P(Fuzz, TheCorpusIsReadOrRefused) {
  const std::vector<std::string> inputs = corpus(GetParam().name);
  int accepted = 0;

  for (const std::string& text : inputs) accepted += run(text);
  run("");

  // Else mutations would start from nothing that is understood.
  EXPECT_GT(accepted, 0);
}

TEST_P(Fuzz, MutationsAreReadOrRefused) {
  const std::vector<std::string> inputs = corpus(GetParam().name);
  std::mt19937 random(20241122);
  int refused = 0;

  for (int i = 0, n = num_mutations(); i < n; ++i)
    refused += !run(mutated(inputs[i % inputs.size()], inputs, random));

  EXPECT_GT(refused, 0);
}

INSTANTIATE_TEST_SUITE_P(, Fuzz, testing::ValuesIn(targets().begin(), targets().end()),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace troupe::fuzz
