#include "model/parallel_layout.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"

namespace troupe::model {
namespace {

std::vector<int64_t> divisors(int64_t of, int64_t at_most) {
  std::vector<int64_t> result;
  for (int64_t size = 1; size <= at_most && size <= of; ++size)
    if (of % size == 0) result.push_back(size);
  return result;
}

constexpr int kMaxWorldSize = 4096;

void check_divides_world(const char* key, int size, int world_size) {
  if (size < 1 || size > world_size || world_size % size != 0)
    throw_user_error("parallel_config.{} {} does not divide world_size {}; use one of {}", key,
                     size, world_size, fmt::join(divisors(world_size, world_size), ", "));
}

void check_divides_heads(const char* key, int size, int heads, int world_size) {
  if (heads % size == 0) return;
  std::vector<int64_t> usable;
  for (const int64_t divisor : divisors(heads, world_size))
    if (world_size % divisor == 0) usable.push_back(divisor);
  throw_user_error(
      "parallel_config.{} {}: {} attention heads cannot be divided by it; use one of {}", key, size,
      heads, fmt::join(usable, ", "));
}

// Every part of a width that is cut into `size` holds at least one column.
void check_cuts(const char* key, int size, const char* what, int64_t width) {
  if (size > width)
    throw_user_error("parallel_config.{} {}: {} {} cannot be cut that often; use at most {}", key,
                     size, what, width, width);
}

void check_experts(const ParallelSizes& sizes, const ModelConfig& config) {
  const int experts = config.n_routed_experts;
  if (!sizes.expert_placement.empty())
    check_placement(sizes.expert_placement, config, sizes.moe_ep_size());
  if (experts == 0) return;
  const int ep = sizes.moe_ep_size();
  if (sizes.expert_placement.empty() && experts % ep != 0) {
    std::vector<int64_t> usable;
    for (const int64_t tp : divisors(sizes.world_size, sizes.world_size))
      if (experts % (sizes.world_size / tp) == 0) usable.push_back(tp);
    std::vector<int64_t> worlds;  // that need nothing else changed
    for (const int64_t divisor : divisors(experts, experts))
      worlds.push_back(divisor * sizes.moe_tp_size);
    throw_user_error(
        "parallel_config.world_size {}: {} experts cannot be divided by moe_ep_size {} (= "
        "world_size / moe_tp_size); moe_tp_size must be one of {}, or world_size one of {}",
        sizes.world_size, experts, ep, fmt::join(usable, ", "), fmt::join(worlds, ", "));
  }
  check_cuts("moe_tp_size", sizes.moe_tp_size, "moe_intermediate_size",
             config.moe_intermediate_size);
  if (config.n_shared_experts > 0)
    check_cuts("shared_tp_size", sizes.shared_tp_size, "shared experts' width",
               config.shared_intermediate_size());
}

}  // namespace

ParallelLayout::ParallelLayout(const ParallelSizes& sizes, const ModelConfig& config)
    : sizes_(sizes),
      num_heads_(config.num_attention_heads),
      num_kv_heads_(config.num_key_value_heads),
      num_physical_experts_(config.n_routed_experts),
      vocab_size_(config.vocab_size) {
  const int world_size = sizes.world_size;
  if (world_size < 1 || world_size > kMaxWorldSize)
    throw_user_error("parallel_config.world_size {}: must be from 1 to {}", world_size,
                     kMaxWorldSize);
  const std::pair<const char*, int> tp_sizes[] = {
      {"attn_tp_size", sizes.attn_tp_size},     {"dense_tp_size", sizes.dense_tp_size},
      {"moe_tp_size", sizes.moe_tp_size},       {"embed_tp_size", sizes.embed_tp_size},
      {"lmhead_tp_size", sizes.lmhead_tp_size}, {"o_proj_tp_size", sizes.o_proj_tp_size},
      {"shared_tp_size", sizes.shared_tp_size}};
  for (const auto& [key, size] : tp_sizes) check_divides_world(key, size, world_size);
  if (sizes.cp_size != 1 && sizes.cp_size != world_size)
    throw_user_error("parallel_config.cp_size {}: must be 1 or world_size {}", sizes.cp_size,
                     world_size);
  check_divides_heads("attn_tp_size", sizes.attn_tp_size, config.num_attention_heads, world_size);
  check_divides_heads("o_proj_tp_size", sizes.o_proj_tp_size, config.num_attention_heads,
                      world_size);
  check_experts(sizes, config);
  if (!sizes.expert_placement.empty())
    num_physical_experts_ = std::ssize(sizes.expert_placement.layers.begin()->second);
  check_cuts("dense_tp_size", sizes.dense_tp_size, "intermediate_size", config.intermediate_size);
  check_cuts("embed_tp_size", sizes.embed_tp_size, "vocab_size", config.vocab_size);
  check_cuts("lmhead_tp_size", sizes.lmhead_tp_size, "vocab_size", config.vocab_size);
}

std::vector<int> ParallelLayout::tp_group(int world_rank, int tp_size) {
  std::vector<int> ranks(tp_size);
  for (int i = 0; i < tp_size; ++i) ranks[i] = world_rank / tp_size * tp_size + i;
  return ranks;
}

std::vector<int> ParallelLayout::ep_group(int world_rank) const {
  std::vector<int> ranks(sizes_.moe_ep_size());
  for (int i = 0; i < sizes_.moe_ep_size(); ++i)
    ranks[i] = i * sizes_.moe_tp_size + tp_rank(world_rank, sizes_.moe_tp_size);
  return ranks;
}

bool ParallelLayout::uses_tensor_parallelism() const {
  const ParallelSizes& s = sizes_;
  return std::max({s.attn_tp_size, s.dense_tp_size, s.moe_tp_size, s.embed_tp_size,
                   s.lmhead_tp_size, s.o_proj_tp_size, s.shared_tp_size}) > 1;
}

int ParallelLayout::o_proj_tp_size() const {
  const bool by_heads = sizes_.o_proj_tp_size == 1 && !sizes_.enable_o_proj_alltoall;
  return by_heads ? sizes_.attn_tp_size : sizes_.o_proj_tp_size;
}

Range ParallelLayout::heads(int world_rank) const {
  return piece(num_heads_, tp_rank(world_rank, sizes_.attn_tp_size), sizes_.attn_tp_size);
}

Range ParallelLayout::kv_heads(int world_rank) const {
  if (num_kv_heads_ == 0) return {};
  const int64_t sharing = num_heads_ / num_kv_heads_;
  const Range mine = heads(world_rank);
  return {mine.begin / sharing, (mine.end - 1) / sharing + 1};
}

int64_t ParallelLayout::max_kv_heads() const {
  int64_t most = 0;
  for (int rank = 0; rank < sizes_.attn_tp_size; ++rank)
    most = std::max(most, kv_heads(rank).size());
  return most;
}

Range ParallelLayout::experts(int world_rank) const {
  return piece(num_physical_experts_, ep_rank(world_rank), sizes_.moe_ep_size());
}

int32_t ParallelLayout::logical_expert(int layer, int64_t physical) const {
  const auto& layers = sizes_.expert_placement.layers;
  return layers.empty() ? static_cast<int32_t>(physical) : layers.at(layer)[physical];
}

Range ParallelLayout::vocab_rows(int world_rank) const {
  return piece(vocab_size_, tp_rank(world_rank, sizes_.embed_tp_size), sizes_.embed_tp_size);
}

Range ParallelLayout::vocab_columns(int world_rank) const {
  return piece(vocab_size_, tp_rank(world_rank, sizes_.lmhead_tp_size), sizes_.lmhead_tp_size);
}

Range ParallelLayout::columns(int64_t width, int tp_rank, int tp_size) {
  const layers::LeafRange owned = leaves(width, tp_rank, tp_size);
  return {owned.k_begin(), owned.k_end()};
}

layers::LeafRange ParallelLayout::leaves(int64_t k_total, int tp_rank, int tp_size) {
  const bool divides = layers::kTpLeaves % tp_size == 0;
  const int total = divides ? layers::kTpLeaves : tp_size;
  const int each = total / tp_size;
  return {
      .k_total = k_total, .total_leaves = total, .first_leaf = tp_rank * each, .num_leaves = each};
}

}  // namespace troupe::model
