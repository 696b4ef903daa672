// Qwen3-MoE against tests/system/qwen3_moe_reference.h, on several layouts.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/system/qwen3_moe_reference.h"

namespace troupe::system_tests {
namespace {

using Forward = Qwen3MoeReference::Forward;

// Prompts of 1 and 70 tokens: the longer one reaches a second chunk of attention.
std::vector<Ids> prompts() {
  Ids longer;
  for (int i = 0; i < 70; ++i) longer.push_back((i * i * 7 + i * 13 + 5) % 120);
  return {{17}, longer};
}

double relative_error(const Vector& expected, const float* found) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double error = std::sqrt(difference / norm);
  return std::isnan(error) ? 1 : error;
}

// Largest relative L2 error of any position.
double logits_error(const Dump& dump, size_t prompt, const Forward& expected) {
  const auto found = values<float>(dump.tensor(fmt::format("logits.{}", prompt)));
  double worst = 0;
  for (size_t t = 0; t < expected.logits.size(); ++t)
    worst = std::max(worst,
                     relative_error(expected.logits[t], &found.at(t * expected.logits[t].size())));
  return worst;
}

int misrouted(const Dump& dump, size_t prompt, const Forward& expected) {
  int count = 0;
  for (size_t layer = 0; layer < expected.routes.size(); ++layer) {
    const auto ids = values<int32_t>(dump.tensor(fmt::format("router_ids.{}.{}", prompt, layer)));
    for (size_t t = 0; t < expected.routes[layer].size(); ++t) {
      const std::vector<int>& route = expected.routes[layer][t];
      const auto begin = ids.begin() + static_cast<int64_t>(t * route.size());
      count += std::set<int>(begin, begin + std::ssize(route)) !=
               std::set<int>(route.begin(), route.end());
    }
  }
  return count;
}

Dump dump_of(const Qwen3MoeReference& reference, const std::string& dtype, int world_size,
             int attn_tp_size, int moe_tp_size) {
  const model::TemporaryDirectory directory;
  reference.write(directory.path());
  json config = configuration(directory.path(), world_size, dtype);
  config["parallel_config"]["attn_tp_size"] = attn_tp_size;
  config["parallel_config"]["moe_tp_size"] = moe_tp_size;
  return Dump(config, prompts(), "logits,router");
}

// An fp32 forward of 3 layers is off by a few 1e-6 (as the goldens' measured noise says of their
// families); a router margin far above keeps the routes.
constexpr double kFloat32Tolerance = 3e-5;

struct Variant {
  const char* name;
  Qwen3MoeSizes sizes;
};

class Qwen3Moe : public testing::TestWithParam<Variant> {};

TEST_P(Qwen3Moe, HasTheReferencesLogitsAndRoutes) {
  const Qwen3MoeReference reference(GetParam().sizes);
  for (const auto& [world_size, attn_tp_size, moe_tp_size] :
       {std::array{1, 1, 1}, {2, 1, 2}, {4, 4, 1}, {8, 8, 4}}) {
    SCOPED_TRACE(fmt::format("{} ranks", world_size));
    const Dump dump = dump_of(reference, "float32", world_size, attn_tp_size, moe_tp_size);
    for (size_t i = 0; i < prompts().size(); ++i) {
      const Forward expected = reference.forward(prompts()[i]);
      ASSERT_GT(expected.router_margin, kFloat32Tolerance);
      EXPECT_LE(logits_error(dump, i, expected), kFloat32Tolerance);
      EXPECT_EQ(misrouted(dump, i, expected), 0);
    }
  }
}

TEST_P(Qwen3Moe, ContinuesAsTheReference) {
  const Qwen3MoeReference reference(GetParam().sizes);
  Ids tokens = {17, 3, 99};
  const model::TemporaryDirectory directory;
  reference.write(directory.path());
  json config = configuration(directory.path(), 2, "float32");
  config["scheduler_config"]["max_new_tokens"] = 12;

  const Ids found = output_ids(generate(config, {tokens})).at(0);

  Ids expected;
  for (int i = 0; i < 12; ++i) {
    const Vector last = reference.forward(tokens).logits.back();
    expected.push_back(static_cast<int32_t>(std::ranges::max_element(last) - last.begin()));
    tokens.push_back(expected.back());
  }
  EXPECT_EQ(found, expected);
}

INSTANTIATE_TEST_SUITE_P(
    With, Qwen3Moe,
    testing::Values(Variant{"OwnHeadAndNormalisedWeights", {}},
                    Variant{"TiedHeadAndPlainWeights",
                            {.kv_heads = 4, .norm_topk_prob = false, .tie_word_embeddings = true}}),
    [](const auto& test) { return test.param.name; });

TEST(Qwen3MoeInBfloat16, StaysNearTheReference) {
  const Qwen3MoeReference reference({});
  const Dump dump = dump_of(reference, "bfloat16", 2, 2, 1);

  // One token: nothing but rounding, unless an expert changes; the margin forbids that.
  EXPECT_LE(logits_error(dump, 0, reference.forward(prompts()[0])), 0.03);
}

// What the tests above would not see is not tested: every part moves the logits.
class WrongQwen3Moe : public testing::TestWithParam<const char*> {};

TEST_P(WrongQwen3Moe, IsFarFromTheReference) {
  Qwen3MoeReference reference({});
  const Forward expected = reference.forward(prompts()[1]);
  reference.set_ones(GetParam());

  EXPECT_GE(logits_error(dump_of(reference, "float32", 2, 1, 1), 1, expected),
            100 * kFloat32Tolerance);
}

INSTANTIATE_TEST_SUITE_P(Without, WrongQwen3Moe,
                         testing::Values("model.layers.1.self_attn.q_norm.weight",
                                         "model.layers.1.self_attn.k_norm.weight",
                                         "model.layers.1.input_layernorm.weight",
                                         "model.layers.2.post_attention_layernorm.weight",
                                         "model.norm.weight"),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace(name, '.', '_');
                           return name;
                         });

}  // namespace
}  // namespace troupe::system_tests
