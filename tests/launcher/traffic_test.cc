#include "launcher/traffic.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "launcher/config.h"
#include "launcher/launch.h"
#include "launcher/launch_sizes.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

const std::filesystem::path kSource = TROUPE_SOURCE_DIR;

// 2 dense layers and 3 of 8 experts; a row is 20 bytes in bf16, one of all heads 48.
model::ModelConfig small_model() {
  model::ModelConfig model;
  model.vocab_size = 100;
  model.hidden_size = 10;
  model.intermediate_size = model.moe_intermediate_size = 16;
  model.num_hidden_layers = 5;
  model.first_k_dense_replace = 2;
  model.num_attention_heads = 8;
  model.v_head_dim = 3;
  model.n_routed_experts = 8;
  model.n_shared_experts = 1;
  model.gate.num_experts = 8;
  model.gate.topk = 2;
  model.gate.num_groups = model.gate.topk_groups = 1;
  return model;
}

// "stage: collective" to bytes per token and layer.
std::map<std::string, double> bytes_of(const model::ParallelSizes& sizes, int candidates = 1,
                                       const actors::MoeOptions& moe = {}) {
  const model::ModelConfig model = small_model();
  std::map<std::string, double> result;
  for (const Traffic& t : token_traffic(model, {sizes, model}, 2, candidates, moe))
    result[fmt::format("{}: {} x{}", t.stage, t.collective, t.layers)] = t.bytes;
  return result;
}

using Bytes = std::map<std::string, double>;

TEST(TokenTraffic, OneRankAndWhatIsNotCutMoveNothing) {
  EXPECT_EQ(bytes_of({}), Bytes{});
  EXPECT_EQ(bytes_of({.world_size = 4, .moe_tp_size = 4}).size(), 2u);  // experts alone
}

TEST(TokenTraffic, EveryAxisMovesWhatAHandCountGives) {
  const Bytes bytes = bytes_of({.world_size = 8,
                                .attn_tp_size = 4,
                                .dense_tp_size = 8,
                                .moe_tp_size = 2,
                                .embed_tp_size = 2,
                                .lmhead_tp_size = 4,
                                .shared_tp_size = 2});

  const Bytes expected{
      {"embedding: all_gather of token ids x1", 4},
      {"embedding: all_to_all of table rows x1", 10},  // half of the rows are elsewhere
      {"attention: all_gather of normed rows x5", 3 * 20},
      {"attention: reduce_scatter of o_proj, fp32 x5", 3 * 40},
      {"attention: all_gather after the last layer x1", 3 * 20},
      {"dense MLP: all_gather of normed rows x2", 7 * 20},
      {"dense MLP: reduce_scatter of down_proj, fp32 x2", 7 * 40},
      {"shared experts: all_gather of normed rows x3", 20},
      {"shared experts: reduce_scatter of down_proj, fp32 x3", 40},
      {"experts: all_gather of rows and expert ids x3", 20 + 8},
      // Of 4 ranks with 2 of 8 experts, 2 experts are on 4 (1 - 6/8 5/7) = 13/7, of which 3/4 are
      // others; 20 bytes and 2 ids to each, from 2 ranks.
      {"experts: dispatch x3", 2 * (13.0 / 7) * 0.75 * 28},
      {"experts: combine, top-k rows, fp32 x3", 2 * 0.75 * 2 * 40},
      {"experts: reduce_scatter of top-k rows, fp32 x3", 2 * 40},
      {"LM head: all_gather of normed rows x1", 3 * 20},
      {"LM head: all_to_all of the best logits, fp32 x1", 3 * 8},
      {"LM head: all_gather of sampled tokens x1", 3 * 16}};
  ASSERT_EQ(bytes.size(), expected.size());
  for (const auto& [what, value] : expected) {
    ASSERT_TRUE(bytes.contains(what)) << what;
    EXPECT_DOUBLE_EQ(bytes.at(what), value) << what;
  }
}

// Of 4 ranks with 2 of 8 experts each, a token's 2 are on 4 (1 - 6/8 5/7) = 13/7, 3/4 of them
// others.
TEST(TokenTraffic, FormAndPayloadOfDispatchDecideWhatExpertsGet) {
  const model::ParallelSizes sizes{.world_size = 4};
  const double others = 13.0 / 7 * 0.75;

  Bytes per_rank = bytes_of(sizes, 1, {.deterministic = false});
  EXPECT_DOUBLE_EQ(per_rank.at("experts: dispatch x3"), others * (20 + 2 * 8));
  EXPECT_DOUBLE_EQ(per_rank.at("experts: combine, a row per rank x3"), others * 20);

  Bytes int8 = bytes_of(sizes, 1, {.int8_payload = true});
  EXPECT_DOUBLE_EQ(int8.at("experts: dispatch x3"), others * (10 + 4 + 2 * 4));
  EXPECT_DOUBLE_EQ(int8.at("experts: combine, top-k rows x3"), 0.75 * 2 * 20);

  Bytes routed = bytes_of(sizes, 1, {.double_routing = true});
  EXPECT_DOUBLE_EQ(routed.at("experts: all_to_all_v to experts x3"), 0.75 * 2 * 20);
  EXPECT_DOUBLE_EQ(routed.at("experts: all_to_all_v back x3"), 0.75 * 2 * 20);
}

TEST(TokenTraffic, HeadsBecomeRowsWhereOProjIsCutOtherwise) {
  Bytes whole = bytes_of({.world_size = 4, .attn_tp_size = 4, .enable_o_proj_alltoall = true});
  EXPECT_DOUBLE_EQ(whole.at("attention: all_to_all, heads to rows x5"), 0.75 * 48);
  EXPECT_FALSE(whole.contains("attention: reduce_scatter of o_proj, fp32 x5"));

  Bytes cut = bytes_of({.world_size = 4, .attn_tp_size = 4, .o_proj_tp_size = 2});
  EXPECT_DOUBLE_EQ(cut.at("attention: all_to_all, heads to rows x5"), 0.75 * 48);
  EXPECT_DOUBLE_EQ(cut.at("attention: all_to_all, rows to inputs of o_proj x5"), 0.5 * 48);
  EXPECT_DOUBLE_EQ(cut.at("attention: reduce_scatter of o_proj, fp32 x5"), 40);
}

TEST(TokenTraffic, AllLogitsOrTheBestOfEachRank) {
  const model::ParallelSizes sizes{.world_size = 4, .lmhead_tp_size = 4};

  EXPECT_DOUBLE_EQ(bytes_of(sizes, 0).at("LM head: all_to_all of logits, fp32 x1"), 300);
  EXPECT_DOUBLE_EQ(bytes_of(sizes, 5).at("LM head: all_to_all of the best logits, fp32 x1"),
                   3 * 5 * 8);
  // A rank has 25 columns, not 60.
  EXPECT_DOUBLE_EQ(bytes_of(sizes, 60).at("LM head: all_to_all of the best logits, fp32 x1"),
                   3 * 25 * 8);
}

// Two of 8 experts, out of `topk_groups` groups of two, counted over all choices of both.
double counted_visits(int topk_groups, const std::vector<int>& rank_of_expert) {
  int64_t visited = 0, choices = 0;
  for (unsigned groups = 0; groups < 16; ++groups) {
    if (std::popcount(groups) != topk_groups) continue;
    for (int a = 0; a < 8; ++a) {
      for (int b = a + 1; b < 8; ++b) {
        if ((groups >> (a / 2) & 1) == 0 || (groups >> (b / 2) & 1) == 0) continue;
        ++choices;
        visited += rank_of_expert[a] == rank_of_expert[b] ? 1 : 2;
      }
    }
  }
  return static_cast<double>(visited) / static_cast<double>(choices);
}

TEST(MeanRanksVisited, IsTheMeanOverAllChoices) {
  layers::TopkGateConfig gate;
  gate.num_experts = 8;
  gate.topk = 2;
  gate.num_groups = 4;
  for (const int num_ranks : {1, 2, 4, 8}) {
    for (const int stride : {1, 3, 5}) {  // in order, and scattered
      std::vector<int> rank_of_expert(8);
      for (int e = 0; e < 8; ++e) rank_of_expert[e * stride % 8] = e * num_ranks / 8;
      for (const int topk_groups : {1, 2, 4}) {
        gate.topk_groups = topk_groups;
        EXPECT_NEAR(mean_ranks_visited(gate, rank_of_expert, num_ranks),
                    counted_visits(topk_groups, rank_of_expert), 1e-12)
            << topk_groups << " groups, " << num_ranks << " ranks, stride " << stride;
      }
    }
  }
}

// Real ranks of models/tiny-moe read `prompts` prompts of `length` tokens and make one token each.
struct Measured {
  double sent = 0, computed = 0;
};
Measured measure(std::vector<std::string> overrides, int prompts, int length) {
  overrides.push_back("model_config.model_path=" + (kSource / "models/tiny-moe").string());
  overrides.push_back("model_config.next_n=0");
  overrides.push_back(fmt::format("scheduler_config.batch_size={}", prompts));
  const Config config = read_config(kSource / "configs/tiny_moe.yaml", overrides);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  std::vector<actors::Request> requests(prompts);
  for (int i = 0; i < prompts; ++i) {
    for (int t = 0; t < length; ++t)  // in turn from both halves of the vocabulary
      requests[i].prompt.push_back((t % 2) * 2048 + (i * 521 + t * 97) % 2048);
    requests[i].max_new_tokens = 1;
  }
  Measured result;
  const SessionCallbacks callbacks{
      .on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {}, .on_observed = {}};
  for (const RankFigures& rank : run_launch(config, model, requests, 0, callbacks).ranks)
    result.sent += static_cast<double>(rank.bytes_sent);

  const model::ParallelLayout layout(config.parallel, model);
  result.computed = static_cast<double>(forward_overhead_bytes(layout));
  for (const Traffic& t : token_traffic(model, layout, 2, 1, moe_options(config)))
    result.computed += t.bytes * t.layers * prompts * (t.sampled ? 1 : length);
  return result;
}

TEST(TokenTraffic, IsWhatRanksSendWithTensorParallelismInEveryAxis) {
  const std::vector<std::string> sizes{
      "parallel_config.attn_tp_size=2",  "parallel_config.dense_tp_size=4",
      "parallel_config.moe_tp_size=4",   "parallel_config.shared_tp_size=2",
      "parallel_config.embed_tp_size=2", "parallel_config.lmhead_tp_size=4"};
  const Measured by_heads = measure(sizes, 4, 16);
  EXPECT_EQ(by_heads.sent, by_heads.computed);

  std::vector<std::string> turned = sizes;
  turned.push_back("parallel_config.o_proj_tp_size=4");
  const Measured by_rows = measure(turned, 4, 16);
  EXPECT_EQ(by_rows.sent, by_rows.computed);
  EXPECT_NE(by_rows.sent, by_heads.sent);
}

// The gate of a trained model has its favourites: near the mean, not equal to it.
TEST(TokenTraffic, IsNearWhatRanksSendToExperts) {
  const Measured parts = measure({}, 4, 100);
  EXPECT_NEAR(parts.sent / parts.computed, 1, 0.1);

  const Measured halves = measure({"parallel_config.moe_tp_size=2"}, 4, 100);
  EXPECT_NEAR(halves.sent / halves.computed, 1, 0.1);

  const Measured sums = measure({"runtime_config.deterministic=False"}, 4, 100);
  EXPECT_NEAR(sums.sent / sums.computed, 1, 0.1);
  EXPECT_LT(sums.sent, parts.sent);
}

// Half of the experts twice, the second time two ranks further on.
TEST(TokenTraffic, CountsTheCopiesOfExperts) {
  const model::ModelConfig model = model::read_model_config(kSource / "models/tiny-moe");
  model::ExpertPlacement placement;
  for (const int layer : model::moe_layers(model))
    for (int rank = 0; rank < 4; ++rank)
      for (const int expert : {0, 1, 2, 3, 8, 9})
        placement.layers[layer].push_back((4 * rank + expert) % 16);
  const model::TemporaryDirectory directory;
  const auto file = directory.write("placement.json", model::placement_json(placement).dump());

  const std::string copies = "runtime_config.expert_placement=" + file.string();
  const Measured redundant = measure({copies, "runtime_config.deterministic=False"}, 4, 100);

  EXPECT_NEAR(redundant.sent / redundant.computed, 1, 0.1);
}

}  // namespace
}  // namespace troupe::launcher
