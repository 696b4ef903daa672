#include <bit>
#include <map>
#include <random>

#include "model/weights.h"
#include "tests/model/loaded_world.h"
#include "tests/model/weight_walk.h"

namespace troupe::model {
namespace {

const char* const kFp8 = "tests/goldens/ds3-tiny-fp8";
const char* const kBf16 = "tests/goldens/ds3-tiny-bf16";

// The shapes of a checkpoint's config.json, made smaller: random weights need no checkpoint.
ModelConfig small_config(const char* checkpoint) {
  ModelConfig config = read_model_config(source_file(checkpoint));
  config.num_hidden_layers = 2;
  config.n_routed_experts = config.gate.num_experts = 4;
  config.num_attention_heads = 4;
  return config;
}

// Random weights by tensor and element, collected over the ranks of a layout.
using Values = std::map<std::string, std::map<std::pair<int64_t, int64_t>, float>>;

// On how many ranks an element is.
using Holders = std::map<std::string, std::map<std::pair<int64_t, int64_t>, int>>;

Values random_values(const ModelConfig& config, const ParallelSizes& sizes, uint64_t seed,
                     Holders* holders = nullptr) {
  const LoadedWorld world = load_world(
      "/nowhere", config, sizes,
      {.with_ckpt = false, .seed = seed, .with_mtp = config.num_nextn_predict_layers > 0});
  Values values;
  for (int rank = 0; rank < sizes.world_size; ++rank) {
    const auto visit = [&](const HeldElement& element) {
      // The MTP module has the main model's embedding and head, under another name.
      if (contains(element.tensor, "layers.2.embed") ||
          contains(element.tensor, "shared_head.head"))
        return;
      const auto [at, added] =
          values[element.tensor].try_emplace({element.row, element.col}, element.value);
      ASSERT_EQ(at->second, element.value) << element.tensor;
      if (holders != nullptr) ++(*holders)[element.tensor][{element.row, element.col}];
    };
    WeightWalk(config, sizes, rank, visit).model(world.ranks[rank].weights);
  }
  return values;
}

TEST(RandomWeights, AreTheSameInAnyLayout) {
  const ParallelSizes sizes{.world_size = 4,
                            .attn_tp_size = 4,
                            .dense_tp_size = 2,
                            .moe_tp_size = 2,
                            .embed_tp_size = 4,
                            .lmhead_tp_size = 2};
  for (const char* checkpoint : {kBf16, kFp8}) {
    const ModelConfig config = small_config(checkpoint);
    EXPECT_TRUE(random_values(config, {}, 7) == random_values(config, sizes, 7));
  }
}

// Any shape on any layout: each element has its value, on as many ranks as the layout says.
TEST(RandomWeights, AreHeldAsTheLayoutSaysForAnyShape) {
  std::mt19937 random(11);
  const auto up_to = [&](int most) {
    return 1 << random() % std::bit_width(static_cast<unsigned>(most));
  };
  const auto from = [&](int least, int count) {
    return least + static_cast<int>(random() % count);
  };
  for (int round = 0; round < 6; ++round) {
    ModelConfig config = small_config(round % 2 == 0 ? kBf16 : kFp8);
    config.num_attention_heads = 4 * up_to(4);
    config.v_head_dim = 4 * from(2, 6);
    config.intermediate_size = from(17, 300);
    config.moe_intermediate_size = from(17, 100);
    config.vocab_size = from(100, 300);
    config.n_routed_experts = config.gate.num_experts = 16 * from(1, 2);
    const int world = up_to(16), heads = std::min(world, config.num_attention_heads);
    const ParallelSizes sizes{.world_size = world,
                              .attn_tp_size = up_to(heads),
                              .dense_tp_size = up_to(world),
                              .moe_tp_size = up_to(world),
                              .embed_tp_size = up_to(world),
                              .lmhead_tp_size = up_to(world),
                              .o_proj_tp_size = up_to(heads),
                              .shared_tp_size = up_to(world)};
    SCOPED_TRACE(fmt::format("round {}, world {}", round, world));
    Holders holders;
    EXPECT_TRUE(random_values(config, {}, 7) == random_values(config, sizes, 7, &holders));
    for (const auto& [name, elements] : holders)
      for (const auto& [at, count] : elements) ASSERT_EQ(count, num_holders(name, sizes)) << name;
  }
}

double correlation(const Values& a, const std::string& a_name, const Values& b,
                   const std::string& b_name) {
  double ab = 0, aa = 0, bb = 0;
  for (const auto& [at, value] : a.at(a_name)) {
    const double other = b.at(b_name).at(at);
    ab += value * other;
    aa += value * value;
    bb += other * other;
  }
  return ab / std::sqrt(aa * bb);
}

TEST(RandomWeights, DependOnSeedAndName) {
  const ModelConfig config = small_config(kBf16);
  const Values one = random_values(config, {}, 1), two = random_values(config, {}, 2);
  const std::string q_a = "model.layers.0.self_attn.q_a_proj.weight";
  EXPECT_LT(std::abs(correlation(one, q_a, two, q_a)), 0.05);
  EXPECT_LT(std::abs(correlation(one, q_a, one, "model.layers.1.self_attn.q_a_proj.weight")), 0.05);
}

TEST(RandomWeights, HaveTheVarianceThatKeepsActivationsNearOne) {
  for (const char* checkpoint : {kBf16, kFp8}) {
    const ModelConfig config = small_config(checkpoint);
    const Values values = random_values(config, {}, 1);
    const auto variance = [&](const char* name) {
      double sum = 0, squares = 0;
      for (const auto& [at, value] : values.at(name)) {
        sum += value;
        squares += double{value} * value;
      }
      const auto count = static_cast<double>(values.at(name).size());
      EXPECT_LT(std::abs(sum / count), 0.05 * std::sqrt(squares / count) + 0.01) << name;
      return squares / count;
    };
    const auto hidden = static_cast<double>(config.hidden_size);
    EXPECT_NEAR(variance("model.layers.0.mlp.up_proj.weight") * hidden, 1, 0.3);
    EXPECT_NEAR(variance("lm_head.weight") * hidden, 1, 0.1);
    EXPECT_NEAR(variance("model.embed_tokens.weight"), 1, 0.1);
    EXPECT_LT(variance("model.layers.1.mlp.gate.e_score_correction_bias"), 0.001);
    for (const auto& [at, value] : values.at("model.norm.weight")) EXPECT_EQ(value, 1);
  }
}

}  // namespace
}  // namespace troupe::model
