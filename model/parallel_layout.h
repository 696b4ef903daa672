// model/parallel_layout.h: how a model is spread over ranks: sizes, groups, who owns what.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/packed_matrix.h"
#include "model/expert_placement.h"
#include "model/model_config.h"

namespace troupe::model {

// parallel_config of the YAML. Every size divides world_size.
struct ParallelSizes {
  int world_size = 1;
  int attn_tp_size = 1;
  int dense_tp_size = 1;
  int moe_tp_size = 1;
  int embed_tp_size = 1;
  int lmhead_tp_size = 1;
  int o_proj_tp_size = 1;
  int shared_tp_size = 1;
  int cp_size = 1;
  bool enable_o_proj_alltoall = false;    // custom_params: heads to tokens before o_proj
  ExpertPlacement expert_placement = {};  // runtime_config; empty: each expert once, in order

  int attn_dp_size() const { return world_size / attn_tp_size; }
  int moe_ep_size() const { return world_size / moe_tp_size; }
};

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// Piece `index` of `count` nearly equal pieces of [0, width), in order.
inline Range piece(int64_t width, int index, int count) {
  return {index * width / count, (index + 1) * width / count};
}

// Where one rank stands. Tensor-parallel groups are runs of neighbouring ranks: with size tp the
// ranks [g tp, (g + 1) tp) form group g. Expert-parallel groups take one rank of each moe_tp group:
// ep rank = world rank / moe_tp_size.
class ParallelLayout {
 public:
  // Throws UserError when a size does not divide the world or the model, with the sizes that would
  // work: heads % attn_tp, experts % moe_ep (check_placement() where there is one). The vocabulary
  // and the MLPs' widths need not divide, but every part of them holds something.
  ParallelLayout(const ParallelSizes& sizes, const ModelConfig& config);

  const ParallelSizes& sizes() const { return sizes_; }

  // Any tensor-parallel size above 1: ranks then compute with each other's rows.
  bool uses_tensor_parallelism() const;

  static int tp_rank(int world_rank, int tp_size) { return world_rank % tp_size; }
  static std::vector<int> tp_group(int world_rank, int tp_size);
  int ep_rank(int world_rank) const { return world_rank / sizes_.moe_tp_size; }
  std::vector<int> ep_group(int world_rank) const;
  int dp_rank(int world_rank) const { return world_rank / sizes_.attn_tp_size; }

  // Ranks that cut one o_proj. attn_tp_size where o_proj_tp_size is 1: each rank multiplies the
  // heads it has (row-parallel). With enable_o_proj_alltoall, or another o_proj_tp_size,
  // attention's ranks first turn heads into tokens, and o_proj is cut by o_proj_tp_size (1: every
  // rank holds all of it).
  int o_proj_tp_size() const;

  Range heads(int world_rank) const;  // attention heads
  // Key and value heads that these read; none with MLA. Ranks share one where attn_tp_size is more
  // than there are.
  Range kv_heads(int world_rank) const;
  int64_t max_kv_heads() const;               // of any rank
  Range experts(int world_rank) const;        // physical routed experts
  Range vocab_rows(int world_rank) const;     // of the embedding
  Range vocab_columns(int world_rank) const;  // of the LM head

  // Physical experts of a layer: the model's own unless some have several copies.
  int64_t num_physical_experts() const { return num_physical_experts_; }
  int32_t logical_expert(int layer, int64_t physical) const;

  // Part `tp_rank` of `tp_size` of `width` outputs of a column-parallel product, cut at leaf
  // boundaries so that it matches the inputs of the row-parallel product that follows.
  static Range columns(int64_t width, int tp_rank, int tp_size);
  // The leaves of `k_total` inputs that it owns. For tp sizes that do not divide 16 the width is
  // cut into tp_size leaves: same results within tolerance, not the same bits.
  static layers::LeafRange leaves(int64_t k_total, int tp_rank, int tp_size);

 private:
  ParallelSizes sizes_;
  int64_t num_heads_, num_kv_heads_, num_physical_experts_, vocab_size_;
};

}  // namespace troupe::model
