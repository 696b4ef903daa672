#include "layers/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace troupe::layers {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(int64_t vocab, uint32_t seed, float spread = 2) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

int32_t sample(const std::vector<float>& logits, const SamplingParams& params, uint64_t position) {
  return Sampler(static_cast<int64_t>(logits.size())).sample(logits, params, position);
}

// The definition by a full sort: the tokens that may be drawn, best first, with probabilities.
std::vector<std::pair<int32_t, double>> distribution(const std::vector<float>& logits,
                                                     const SamplingParams& params) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (params.top_k > 0) order.resize(std::min(order.size(), size_t(params.top_k)));
  const auto weight = [&](int32_t token) {
    return std::exp(double{logits[token]} / params.temperature);
  };
  double total = 0;
  for (const int32_t token : order) total += weight(token);

  std::vector<std::pair<int32_t, double>> kept;
  double mass = 0;
  for (const int32_t token : order) {
    kept.emplace_back(token, weight(token) / total);
    mass += weight(token) / total;
    if (params.top_p < 1 && mass >= params.top_p) break;
  }
  const double least = params.min_p * kept.front().second;
  std::erase_if(kept, [&](const auto& entry) { return entry.second < least; });
  mass = 0;
  for (const auto& entry : kept) mass += entry.second;
  for (auto& entry : kept) entry.second /= mass;
  return kept;
}

void expect_frequencies(const std::vector<float>& logits, const SamplingParams& params) {
  constexpr int kDraws = 20000;
  Sampler sampler(static_cast<int64_t>(logits.size()));
  std::map<int32_t, int> counts;

  for (int position = 0; position < kDraws; ++position)
    ++counts[sampler.sample(logits, params, position)];

  int seen = 0;
  for (const auto& [token, probability] : distribution(logits, params)) {
    const double sigma = std::sqrt(kDraws * probability * (1 - probability));
    EXPECT_NEAR(counts[token], kDraws * probability, 5 * sigma + 1) << "token " << token;
    seen += counts[token];
  }
  EXPECT_EQ(seen, kDraws) << "tokens outside of top_k and top_p were drawn";
}

// Known answers published with the Random123 library (kat_vectors).
TEST(Philox, GivesThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  constexpr uint32_t kOnes = 0xffffffff;

  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Uniform, IsTheFirst53BitsOfTheBlockAtSeedChoiceAndPosition) {
  // philox(0, 0) as above: the second word holds the upper bits.
  EXPECT_EQ(uniform(0, 0, 0), std::ldexp(double(0xe169c58d6627e8d5 >> 11), -53));
  const auto words = philox4x32({0x89abcdef, 0x01234567, 7, 0}, {0x11111111, 0x22222222});
  const uint64_t bits = uint64_t{words[1]} << 32 | words[0];
  EXPECT_EQ(uniform(0x2222222211111111, 7, 0x0123456789abcdef),
            std::ldexp(double(bits >> 11), -53));
}

TEST(Uniform, EveryArgumentChangesTheNumber) {
  std::set<double> numbers;
  for (uint64_t seed : {0ull, 1ull, 1ull << 32})
    for (uint32_t choice : {0u, 1u})
      for (uint64_t position : {0ull, 1ull, 2ull, 1ull << 32})
        numbers.insert(uniform(seed, choice, position));

  EXPECT_EQ(numbers.size(), 3u * 2 * 4);
  EXPECT_GE(*numbers.begin(), 0);
  EXPECT_LT(*numbers.rbegin(), 1);
}

TEST(Argmax, TakesTheLowestOfEqualsAndPassesOverNan) {
  EXPECT_EQ(argmax(std::vector<float>{1, 5, 5, 2}), 1);
  EXPECT_EQ(argmax(std::vector<float>{kNan, -3, kNan, -2}), 3);
  EXPECT_EQ(argmax(std::vector<float>{-0.0f, 0.0f}), 0);
  EXPECT_EQ(argmax(std::vector<float>{kNan, kNan}), 0);
  EXPECT_EQ(argmax(std::vector<float>{-kInfinity, -kInfinity}), 0);
}

TEST(LogProbability, IsTheLogOfTheSoftmax) {
  EXPECT_NEAR(log_probability(std::vector<float>{0, 0, 0, 0}, 2), std::log(0.25), 1e-12);
  EXPECT_NEAR(log_probability(std::vector<float>{1000, 999}, 1), -1 - std::log1p(std::exp(-1)),
              1e-12);
  double sum = 0;
  const std::vector<float> logits = random_logits(300, 1);
  for (int32_t token = 0; token < 300; ++token) sum += std::exp(log_probability(logits, token));
  EXPECT_NEAR(sum, 1, 1e-12);
  EXPECT_THROW(log_probability(logits, 300), std::logic_error);
}

TEST(Sampler, IsGreedyAtTemperatureZero) {
  for (uint64_t position = 0; position < 50; ++position)
    EXPECT_EQ(sample({1, 3, 3, 2}, {.temperature = 0}, position), 1);
}

TEST(Sampler, TopKOfOneIsGreedy) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::vector<float> logits = random_logits(100, seed);
    logits[90] = logits[17] = 20;
    EXPECT_EQ(sample(logits, {.temperature = 3, .top_k = 1}, seed), 17);
  }
}

TEST(Sampler, DrawsByTheSoftmax) {
  expect_frequencies(random_logits(12, 1), {.temperature = 1, .seed = 5});
  expect_frequencies(random_logits(12, 1), {.temperature = 0.5, .seed = 6});
  expect_frequencies({0, 0, 0, 0, 0}, {.temperature = 1, .seed = 7});
}

TEST(Sampler, DrawsWithinTopKAndTopP) {
  const std::vector<float> logits = random_logits(40, 2);
  expect_frequencies(logits, {.temperature = 1, .top_k = 5, .seed = 5});
  expect_frequencies(logits, {.temperature = 1.5, .top_p = 0.8f, .seed = 5});
  expect_frequencies(logits, {.temperature = 1.5, .top_k = 10, .top_p = 0.7f, .seed = 5});
  expect_frequencies(logits, {.temperature = 1.5, .top_k = 1000, .seed = 5});
  expect_frequencies(logits, {.temperature = 1.5, .min_p = 0.2f, .seed = 5});
  expect_frequencies(logits, {.temperature = 1.5, .top_k = 30, .top_p = 0.9f, .min_p = 0.1f});
}

TEST(Sampler, TopPKeepsTheShortestPrefixThatReachesIt) {
  const std::vector<float> logits{7, 7, 7, 7};  // a quarter each
  const auto drawn = [&](float top_p, int32_t top_k) {
    std::set<int32_t> tokens;
    for (uint64_t position = 0; position < 200; ++position)
      tokens.insert(sample(logits, {.temperature = 1, .top_k = top_k, .top_p = top_p}, position));
    return tokens;
  };

  EXPECT_EQ(drawn(0.5f, 0), (std::set<int32_t>{0, 1}));
  EXPECT_EQ(drawn(0.51f, 0), (std::set<int32_t>{0, 1, 2}));
  EXPECT_EQ(drawn(0.0f, 0), (std::set<int32_t>{0}));
  EXPECT_EQ(drawn(0.25f, 0), (std::set<int32_t>{0}));
  EXPECT_EQ(drawn(0.5f, 2), (std::set<int32_t>{0}));  // half of what top_k left
}

TEST(Sampler, InvertsTheUniformNumberInOrderOfFallingLogit) {
  const std::vector<float> logits = random_logits(500, 3);
  const SamplingParams params{
      .temperature = 1.2f, .top_k = 300, .top_p = 0.95f, .seed = 9, .choice = 2};
  const auto expected = distribution(logits, params);

  for (uint64_t position = 0; position < 300; ++position) {
    double left = uniform(9, 2, position);
    size_t rank = 0;
    while (rank + 1 < expected.size() && left >= expected[rank].second)
      left -= expected[rank++].second;
    EXPECT_EQ(sample(logits, params, position), expected[rank].first) << "position " << position;
  }
}

TEST(Sampler, TheSamePlaceDrawsTheSameTokenWhateverRanBefore) {
  const std::vector<float> logits = random_logits(1000, 4);
  const SamplingParams params{.temperature = 1, .seed = 3, .choice = 1};
  Sampler used(1000);
  used.sample(random_logits(1000, 5), {.temperature = 2, .top_k = 7, .top_p = 0.3f}, 99);

  std::set<int32_t> over_positions, over_choices, over_seeds;
  for (uint32_t i = 0; i < 50; ++i) {
    EXPECT_EQ(used.sample(logits, params, i), sample(logits, params, i));
    over_positions.insert(sample(logits, params, i));
    over_choices.insert(sample(logits, {.temperature = 1, .seed = 3, .choice = i}, 0));
    over_seeds.insert(sample(logits, {.temperature = 1, .seed = i, .choice = 1}, 0));
  }

  EXPECT_GT(over_positions.size(), 10u);
  EXPECT_GT(over_choices.size(), 10u);
  EXPECT_GT(over_seeds.size(), 10u);
}

TEST(Sampler, NeverDrawsNanOrMinusInfinity) {
  const std::vector<float> logits{kNan, 1, -kInfinity, 1, kNan};
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1}, SamplingParams{.temperature = 1, .top_k = 4},
        SamplingParams{.temperature = 100, .top_p = 0.99f}}) {
    for (uint64_t position = 0; position < 200; ++position) {
      const int32_t token = sample(logits, params, position);
      EXPECT_TRUE(token == 1 || token == 3) << token;
    }
  }
  EXPECT_EQ(sample({kNan, kNan, kNan}, {.temperature = 1}, 0), 0);
  EXPECT_EQ(sample({0, kInfinity, 0}, {.temperature = 1}, 0), 1);
}

// Pearson's statistic of 20000 draws from 8 tokens: above 24.32 once in a thousand (7 degrees of
// freedom); the draws are the same in every run.
TEST(Sampler, DrawsFromASmallVocabularyPassTheChiSquareTest) {
  const std::vector<float> logits{0.1f, 1.3f, -0.7f, 2.0f, 0.4f, -1.1f, 0.9f, 1.6f};
  constexpr int kDraws = 20000;
  for (const uint64_t seed : {1, 2, 3}) {
    const SamplingParams params{.temperature = 1.3f, .seed = seed};
    std::map<int32_t, int> counts;
    Sampler sampler(8);
    for (int position = 0; position < kDraws; ++position)
      ++counts[sampler.sample(logits, params, position)];

    double chi_square = 0;
    for (const auto& [token, probability] : distribution(logits, params)) {
      const double expected = kDraws * probability;
      chi_square += (counts[token] - expected) * (counts[token] - expected) / expected;
    }
    EXPECT_LT(chi_square, 24.32) << "seed " << seed;
  }
}

// As transformers' RepetitionPenaltyLogitsProcessor, and OpenAI's formula for the other two.
TEST(Penalised, FollowsTheUsualDefinitions) {
  EXPECT_FLOAT_EQ(penalised(3.0f, {.repetition = 1.5f}, 0), 2.0f);
  EXPECT_FLOAT_EQ(penalised(-3.0f, {.repetition = 1.5f}, 2), -4.5f);
  EXPECT_FLOAT_EQ(penalised(1.0f, {.presence = 0.5f, .frequency = 0.25f}, 0), 1.0f);
  EXPECT_FLOAT_EQ(penalised(1.0f, {.presence = 0.5f, .frequency = 0.25f}, 3), -0.25f);
  EXPECT_FLOAT_EQ(penalised(3.0f, {.repetition = 1.5f, .frequency = 1}, 1), 1.0f);
}

TEST(TopLogProbabilities, AreThoseOfAFullSortAndSoftmax) {
  std::vector<float> logits = random_logits(300, 8);
  logits[200] = logits[17];  // a tie: the lower id comes first
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});

  for (const size_t count : {0u, 1u, 20u, 300u}) {
    std::vector<int32_t> tokens(count);
    std::vector<float> log_probs(count);
    top_log_probabilities(logits, tokens, log_probs);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(tokens[i], order[i]);
      EXPECT_NEAR(log_probs[i], logits[order[i]] - std::log(sum), 1e-5);
    }
  }
}

TEST(Sampler, RefusesLogitsOfAnotherVocabulary) {
  Sampler sampler(4);
  EXPECT_THROW(sampler.sample(std::vector<float>(5), {}, 0), std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
