#include "layers/topk_gate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "layers/exp.h"

namespace troupe::layers {
namespace {

constexpr TopkGateConfig kDeepSeekV3{.num_experts = 256,
                                     .topk = 8,
                                     .num_groups = 8,
                                     .topk_groups = 4,
                                     .score = ScoreFunction::kSigmoid,
                                     .group_score = GroupScore::kTopTwoSum,
                                     .normalize = true,
                                     .routed_scale = 2.5f};

struct Gated {
  std::vector<int32_t> ids;    // [tokens, topk]
  std::vector<float> weights;  // [tokens, topk]
};

Gated gate(const TopkGateConfig& config, const std::vector<float>& logits,
           const std::vector<float>& bias = {}) {
  const int64_t tokens = static_cast<int64_t>(logits.size()) / config.num_experts;
  Gated got{std::vector<int32_t>(tokens * config.topk, -1),
            std::vector<float>(tokens * config.topk, -1)};
  topk_gate(config, {logits.data(), tokens, config.num_experts}, bias,
            {got.ids.data(), tokens, config.topk}, {got.weights.data(), tokens, config.topk});
  return got;
}

std::vector<float> random_values(size_t n, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

// Ids by falling score, the lower id first among equals.
std::vector<int32_t> ranking(const std::vector<float>& scores) {
  std::vector<int32_t> ids(scores.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  return ids;
}

// The text of the header by full sorts. fp32 where it decides on the order.
std::vector<float> naive_scores(const TopkGateConfig& config, const std::vector<float>& logits) {
  std::vector<float> scores;
  const float greatest = *std::max_element(logits.begin(), logits.end());
  float sum = 0;
  for (const float logit : logits) sum += exp_f32(logit - greatest);
  for (const float logit : logits) {
    scores.push_back(config.score == ScoreFunction::kSigmoid ? 1 / (1 + exp_f32(-logit))
                                                             : exp_f32(logit - greatest) / sum);
  }
  return scores;
}

std::vector<int32_t> naive_ids(const TopkGateConfig& config, std::vector<float> choice) {
  const int group_size = config.num_experts / config.num_groups;
  std::vector<float> group_scores;
  for (int g = 0; g < config.num_groups; ++g) {
    std::vector<float> members(choice.begin() + g * group_size,
                               choice.begin() + (g + 1) * group_size);
    std::sort(members.rbegin(), members.rend());
    const bool two = config.group_score == GroupScore::kTopTwoSum && group_size > 1;
    group_scores.push_back(two ? members[0] + members[1] : members[0]);
  }
  const std::vector<int32_t> groups = ranking(group_scores);
  for (int i = config.topk_groups; i < config.num_groups; ++i)
    std::fill_n(choice.begin() + groups[i] * group_size, group_size,
                -std::numeric_limits<float>::infinity());
  std::vector<int32_t> ids = ranking(choice);
  ids.resize(config.topk);
  return ids;
}

// In double, from the logits.
std::vector<double> naive_weights(const TopkGateConfig& config, const std::vector<float>& logits,
                                  const std::vector<int32_t>& ids) {
  const auto power = [](float logit) { return std::exp(double{logit}); };
  double all = 0;
  for (const float logit : logits) all += power(logit);
  std::vector<double> weights;
  for (const int32_t id : ids) {
    const double e = power(logits[id]);
    weights.push_back(config.score == ScoreFunction::kSigmoid ? e / (1 + e) : e / all);
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) weight *= config.routed_scale / (config.normalize ? sum : 1);
  return weights;
}

void expect_naive(const TopkGateConfig& config, bool with_bias, uint32_t seed) {
  constexpr int kTokens = 20;
  const std::vector<float> logits = random_values(kTokens * config.num_experts, seed, 1.5f);
  const std::vector<float> bias =
      with_bias ? random_values(config.num_experts, seed + 1, 0.2f) : std::vector<float>{};

  const Gated got = gate(config, logits, bias);

  for (int t = 0; t < kTokens; ++t) {
    const std::vector<float> row(logits.begin() + t * config.num_experts,
                                 logits.begin() + (t + 1) * config.num_experts);
    std::vector<float> choice = naive_scores(config, row);
    for (size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
    const std::vector<int32_t> ids = naive_ids(config, choice);
    const std::vector<double> weights = naive_weights(config, row, ids);
    for (int k = 0; k < config.topk; ++k) {
      EXPECT_EQ(got.ids[t * config.topk + k], ids[k]) << "token " << t << " choice " << k;
      // num_experts roundings in the softmax's sum, a few elsewhere
      const double tolerance = weights[k] * (config.num_experts + 16) * 0x1p-24;
      EXPECT_NEAR(got.weights[t * config.topk + k], weights[k], tolerance) << "token " << t;
    }
  }
}

TEST(TopkGate, BiasDecidesTheChoiceButNotTheWeight) {
  const TopkGateConfig config{.num_experts = 4, .topk = 2};
  const std::vector<float> logits{2, 1, 0, 0};  // by affinity alone: experts 0 and 1
  const std::vector<float> bias{0, 0, 0, 9};    // the balancer wants expert 3

  const Gated got = gate(config, logits, bias);

  EXPECT_EQ(got.ids, (std::vector<int32_t>{3, 0}));
  EXPECT_NEAR(got.weights[0], 0.362f, 1e-3f);  // 0.5 / (0.5 + sigmoid(2)): no trace of the 9
}

TEST(TopkGate, ChoosesOnlyFromTheBestGroups) {
  // Group 0 has the best expert, group 1 the best pair; without a bias sigmoid keeps the order.
  const std::vector<float> logits{3, -9, 1, 1, 0, 0};
  TopkGateConfig config{.num_experts = 6, .topk = 2, .num_groups = 3, .topk_groups = 1};

  config.group_score = GroupScore::kTopTwoSum;
  EXPECT_EQ(gate(config, logits).ids, (std::vector<int32_t>{2, 3}));
  config.group_score = GroupScore::kMax;
  EXPECT_EQ(gate(config, logits).ids, (std::vector<int32_t>{0, 1}));
  config.topk_groups = 2;
  EXPECT_EQ(gate(config, logits).ids, (std::vector<int32_t>{0, 2}));
}

TEST(TopkGate, EqualScoresGoToTheLowerId) {
  const Gated all_equal = gate(kDeepSeekV3, std::vector<float>(256, 0.25f));
  EXPECT_EQ(all_equal.ids, (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  for (const float weight : all_equal.weights) EXPECT_FLOAT_EQ(weight, 2.5f / 8);

  // The better group comes second: its expert leads, the tie between groups 0 and 2 goes to 0.
  const TopkGateConfig config{.num_experts = 6, .topk = 3, .num_groups = 3, .topk_groups = 2};
  EXPECT_EQ(gate(config, {1, 0, 2, 1, 1, 0}).ids, (std::vector<int32_t>{2, 0, 3}));
}

TEST(TopkGate, FollowsTheDefinitionOverManyShapes) {
  uint32_t seed = 1;
  for (const ScoreFunction score : {ScoreFunction::kSigmoid, ScoreFunction::kSoftmax}) {
    for (const GroupScore group_score : {GroupScore::kTopTwoSum, GroupScore::kMax}) {
      for (TopkGateConfig config :
           {kDeepSeekV3, TopkGateConfig{.num_experts = 64, .topk = 6},
            TopkGateConfig{.num_experts = 160, .topk = 6, .num_groups = 8, .topk_groups = 3},
            TopkGateConfig{.num_experts = 12, .topk = 12, .num_groups = 4, .topk_groups = 4},
            TopkGateConfig{.num_experts = 9, .topk = 2, .num_groups = 9, .topk_groups = 3},
            TopkGateConfig{.num_experts = 1, .topk = 1}}) {
        config.score = score;
        config.group_score = group_score;
        config.normalize = seed % 2 == 0;
        expect_naive(config, false, seed++);
        expect_naive(config, true, seed++);
        config.normalize = !config.normalize;
        expect_naive(config, true, seed);
      }
    }
  }
}

TEST(TopkGate, NormalisedWeightsSumToTheRoutedScale) {
  const Gated got = gate(kDeepSeekV3, random_values(256, 3, 2));

  EXPECT_NEAR(std::accumulate(got.weights.begin(), got.weights.end(), 0.0), 2.5, 1e-6);
}

TEST(TopkGate, VanishingScoresGiveVanishingWeights) {
  for (const float weight : gate(kDeepSeekV3, std::vector<float>(256, -1000)).weights)
    EXPECT_NEAR(weight, 0, 1e-15);
}

TEST(TopkGate, NanNeverWinsAndIdsStayInRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const TopkGateConfig config{.num_experts = 4, .topk = 2};
  EXPECT_EQ(gate(config, {nan, 1, nan, 2}).ids, (std::vector<int32_t>{3, 1}));

  for (const ScoreFunction score : {ScoreFunction::kSigmoid, ScoreFunction::kSoftmax}) {
    TopkGateConfig all_nan = kDeepSeekV3;
    all_nan.score = score;
    const Gated got = gate(all_nan, std::vector<float>(256, nan));
    EXPECT_EQ(std::set<int32_t>(got.ids.begin(), got.ids.end()).size(), 8u);
    for (const int32_t id : got.ids) EXPECT_TRUE(id >= 0 && id < 256) << id;
    for (const float weight : got.weights) EXPECT_TRUE(std::isnan(weight));
  }
}

TEST(TopkGate, RefusesAGateThatCannotChooseEnough) {
  const std::vector<float> logits(8);
  EXPECT_THROW(gate({.num_experts = 8, .topk = 3, .num_groups = 4, .topk_groups = 1}, logits),
               std::logic_error);
  EXPECT_THROW(gate({.num_experts = 8, .topk = 1, .num_groups = 3, .topk_groups = 1}, logits),
               std::logic_error);
  EXPECT_THROW(gate({.num_experts = 8, .topk = 1}, logits, {1, 2}), std::logic_error);
}

// gpt_oss/torch/model.py: torch.topk of the logits, softmax over those.
TEST(TopkGate, MayTakeTheSoftmaxOfTheChosenOnly) {
  const TopkGateConfig config{
      .num_experts = 6, .topk = 3, .score = ScoreFunction::kSoftmaxOfChosen};

  const Gated got = gate(config, {1, -2, 3, 100, 2.5f, 3,  //
                                  -400, -401, -500, -402, -403, -404});

  EXPECT_EQ(got.ids, (std::vector<int32_t>{3, 2, 5, 0, 1, 3}));
  EXPECT_EQ(got.weights[0], 1);
  EXPECT_LT(got.weights[1], 1e-38f);
  const double sum = 1 + std::exp(-1) + std::exp(-2);
  EXPECT_NEAR(got.weights[3], 1 / sum, 1e-6);
  EXPECT_NEAR(got.weights[4], std::exp(-1) / sum, 1e-6);
  EXPECT_NEAR(got.weights[5], std::exp(-2) / sum, 1e-6);
}

}  // namespace
}  // namespace troupe::layers
