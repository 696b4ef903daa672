// actors/gqa_attention.h: grouped-query attention of one rank (layers/gqa.h): GPT-OSS, Qwen3-MoE.
//
// A cache row is the keys, then the values of the kv heads that this rank's query heads read. Where
// an attention group has more ranks than there are kv heads, several ranks keep the same one.
// Layers with a window have block tables of their own.
#pragma once

#include <vector>

#include "actors/attention_op.h"
#include "actors/rotary_rows.h"
#include "layers/gqa.h"
#include "layers/prepared_rows.h"

namespace troupe::actors {

class GqaAttention final : public AttentionOp {
 public:
  explicit GqaAttention(const RankContext& context);

  void begin_forward(std::span<const layers::KvQuery> queries,
                     Matrix<const int32_t> positions) override;
  Matrix<float> attend(int layer, const model::AttentionWeights& weights,
                       Matrix<const float> normed) override;

 private:
  // Queries, keys and values of the rows, queries and keys normed and rotated.
  Matrix<float> project(const model::GqaWeights& weights, Matrix<const float> normed);
  void norm_heads(std::span<const float> weight, Matrix<float> heads);
  void write_keys_and_values(int slot, std::span<const layers::KvQuery> queries,
                             const model::GqaWeights& weights, Matrix<const float> keys_and_values);

  RankContext context_;
  layers::GqaShape shape_;
  RotaryRows rotary_;
  std::span<const layers::KvQuery> queries_;
  std::vector<layers::KvQuery> window_queries_;  // the same, by window_table
  std::vector<int> slots_;                       // of layers in the cache
  layers::InputBuffer inputs_;
  std::vector<float> scales_;  // of a row of an int8 cache

  msg::Tensor qkv_;        // [max_rows, (heads + 2 kv heads) * head_dim]
  msg::Tensor cache_row_;  // [1, width of the cache]
  msg::Tensor heads_out_;  // [max_rows, heads * head_dim]
};

}  // namespace troupe::actors
