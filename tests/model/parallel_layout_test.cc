#include "model/parallel_layout.h"

#include <numeric>
#include <set>

#include "tests/model/files.h"

namespace troupe::model {
namespace {

ModelConfig config_of_sixteen() {
  ModelConfig config;
  config.vocab_size = 1001;
  config.hidden_size = 64;
  config.intermediate_size = 40;
  config.moe_intermediate_size = 24;
  config.num_attention_heads = 8;
  config.n_routed_experts = 16;
  config.n_shared_experts = 1;
  return config;
}

std::string layout_error(const ParallelSizes& sizes) {
  return user_error([&] { ParallelLayout(sizes, config_of_sixteen()); });
}

TEST(ParallelLayout, GroupsAreNeighboursForTensorsAndStridesForExperts) {
  const ParallelLayout layout({.world_size = 8, .attn_tp_size = 4, .moe_tp_size = 2},
                              config_of_sixteen());

  EXPECT_EQ(ParallelLayout::tp_group(6, 4), (std::vector{4, 5, 6, 7}));
  EXPECT_EQ(ParallelLayout::tp_rank(6, 4), 2);
  EXPECT_EQ(layout.dp_rank(6), 1);
  EXPECT_EQ(layout.ep_rank(5), 2);
  EXPECT_EQ(layout.ep_group(5), (std::vector{1, 3, 5, 7}));
  EXPECT_EQ(layout.sizes().attn_dp_size(), 2);
  EXPECT_EQ(layout.sizes().moe_ep_size(), 4);
}

// Each tensor-parallel group owns every index once; each expert lies with one group of moe_tp
// ranks.
TEST(ParallelLayout, RangesOfAGroupCoverTheModelOnce) {
  for (const int tp : {1, 2, 4, 8}) {
    const ParallelLayout layout({.world_size = 8,
                                 .attn_tp_size = tp,
                                 .moe_tp_size = tp,
                                 .embed_tp_size = tp,
                                 .lmhead_tp_size = tp},
                                config_of_sixteen());
    for (int group = 0; group < 8; group += tp) {
      int64_t heads = 0, rows = 0, columns = 0;
      for (int rank = group; rank < group + tp; ++rank) {
        EXPECT_EQ(layout.heads(rank).begin, heads);
        EXPECT_EQ(layout.vocab_rows(rank).begin, rows);
        EXPECT_EQ(layout.vocab_columns(rank).begin, columns);
        heads = layout.heads(rank).end;
        rows = layout.vocab_rows(rank).end;
        columns = layout.vocab_columns(rank).end;
        EXPECT_EQ(layout.experts(rank).begin, group / tp * 2 * tp);
        EXPECT_EQ(layout.experts(rank).size(), 2 * tp);
      }
      EXPECT_EQ(heads, 8);
      EXPECT_EQ(rows, 1001);
      EXPECT_EQ(columns, 1001);
    }
  }
}

TEST(ParallelLayout, ShardsAreRunsOfTheSameSixteenLeaves) {
  for (const int64_t width : {16, 17, 40, 2048, 18432}) {
    for (const int tp : {1, 2, 4, 8, 16}) {
      int64_t end = 0;
      for (int rank = 0; rank < tp; ++rank) {
        const layers::LeafRange leaves = ParallelLayout::leaves(width, rank, tp);
        const Range columns = ParallelLayout::columns(width, rank, tp);
        EXPECT_EQ(leaves.total_leaves, 16);
        EXPECT_EQ(leaves.num_leaves, 16 / tp);
        EXPECT_EQ(leaves.k_total, width);
        EXPECT_EQ(columns.begin, end);
        EXPECT_EQ(columns.begin, width * (rank * 16 / tp) / 16);
        EXPECT_EQ(columns.begin, leaves.k_begin());
        EXPECT_EQ(columns.end, leaves.k_end());
        end = columns.end;
      }
      EXPECT_EQ(end, width);
    }
  }
}

TEST(ParallelLayout, OtherSizesHaveOneLeafPerRank) {
  const layers::LeafRange leaves = ParallelLayout::leaves(100, 2, 3);

  EXPECT_EQ(leaves.total_leaves, 3);
  EXPECT_EQ(leaves.num_leaves, 1);
  EXPECT_EQ(leaves.k_begin(), 66);
  EXPECT_EQ(leaves.k_end(), 100);
}

// A rank computes whole heads; the leaves of o_proj that it owns are exactly their values.
TEST(ParallelLayout, LeavesOfOProjEndBetweenHeads) {
  ModelConfig config = config_of_sixteen();
  for (const int heads : {3, 6, 8, 12, 48, 128}) {
    config.num_attention_heads = heads;
    for (int tp = 1; tp <= heads; ++tp) {
      if (heads % tp != 0) continue;
      config.n_routed_experts = 0;
      const ParallelLayout layout({.world_size = tp, .attn_tp_size = tp}, config);
      for (int rank = 0; rank < tp; ++rank) {
        const Range values = ParallelLayout::columns(heads * 24, rank, tp);
        EXPECT_EQ(values.begin, layout.heads(rank).begin * 24);
        EXPECT_EQ(values.end, layout.heads(rank).end * 24);
      }
    }
  }
}

TEST(ParallelLayout, QueryHeadsCanReadTheirKeyAndValueHeads) {
  ModelConfig config = config_of_sixteen();
  config.n_routed_experts = 0;
  for (const auto& [heads, kv_heads] : {std::pair{8, 2}, {8, 8}, {12, 2}, {12, 3}, {64, 8}}) {
    config.num_attention_heads = heads;
    config.num_key_value_heads = kv_heads;
    for (int tp = 1; tp <= heads; ++tp) {
      if (heads % tp != 0) continue;
      const ParallelLayout layout({.world_size = tp, .attn_tp_size = tp}, config);
      int64_t most = 0;
      for (int rank = 0; rank < tp; ++rank) {
        const Range held = layout.kv_heads(rank);
        most = std::max(most, held.size());
        std::set<int64_t> read;
        for (int64_t head = layout.heads(rank).begin; head < layout.heads(rank).end; ++head)
          read.insert(head / (heads / kv_heads));
        EXPECT_EQ(*read.begin(), held.begin);
        EXPECT_EQ(std::ssize(read), held.size());
      }
      EXPECT_EQ(layout.max_kv_heads(), most);
    }
  }
  EXPECT_EQ(ParallelLayout({}, config_of_sixteen()).max_kv_heads(), 0);
}

TEST(ParallelLayout, SizesThatDoNotFitAreRefusedWithThoseThatDo) {
  EXPECT_EQ(layout_error({.world_size = 3}),
            "parallel_config.world_size 3: 16 experts cannot be divided by moe_ep_size 3 (= "
            "world_size / moe_tp_size); moe_tp_size must be one of 3, or world_size one of 1, 2, "
            "4, 8, 16");
  EXPECT_NE(layout_error({.world_size = 12}).find("moe_tp_size must be one of 3, 6, 12, or"),
            std::string::npos);
  EXPECT_EQ(layout_error({.world_size = 12, .attn_tp_size = 5, .moe_tp_size = 3}),
            "parallel_config.attn_tp_size 5 does not divide world_size 12; use one of 1, 2, 3, 4, "
            "6, 12");
  EXPECT_EQ(layout_error({.world_size = 12, .attn_tp_size = 3, .moe_tp_size = 3}),
            "parallel_config.attn_tp_size 3: 8 attention heads cannot be divided by it; use one "
            "of 1, 2, 4");
  EXPECT_CONTAINS(layout_error({.world_size = 48, .dense_tp_size = 48, .moe_tp_size = 3}),
                  "dense_tp_size 48: intermediate_size 40 cannot be cut that often");
  EXPECT_CONTAINS(layout_error({.world_size = 8, .cp_size = 2}), "cp_size 2: must be 1 or");
  EXPECT_CONTAINS(layout_error({.world_size = 8, .o_proj_tp_size = 0}), "o_proj_tp_size 0");
  EXPECT_CONTAINS(layout_error({.world_size = 0}), "world_size 0");
  EXPECT_CONTAINS(layout_error({.world_size = 1 << 30}), "world_size");
  EXPECT_CONTAINS(layout_error({.world_size = 8, .shared_tp_size = -2}), "shared_tp_size -2");
}

}  // namespace
}  // namespace troupe::model
