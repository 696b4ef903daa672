#include "layers/mla.h"

#include <algorithm>

#include "base/error.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

// All heads read the same row: the value is the beginning of the key.
AttentionGroup group_of(const MlaShape& shape) {
  return {.num_heads = shape.num_heads,
          .key_width = shape.kv_lora_rank + shape.rope_dim,
          .value_width = shape.kv_lora_rank,
          .softmax_scale = shape.softmax_scale};
}

void check_shapes(const AttentionGroup& group, const KvCache& cache,
                  std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  const int64_t tokens = static_cast<int64_t>(queries.size());
  TROUPE_CHECK(cache.shape().width == group.key_width, "cache rows of {} for latents of {}",
               cache.shape().width, group.key_width);
  TROUPE_CHECK(q.rows == tokens && q.cols == group.num_heads * group.key_width &&
                   o.rows == tokens && o.cols == group.num_heads * group.value_width,
               "q [{}, {}], o [{}, {}] for {} queries", q.rows, q.cols, o.rows, o.cols, tokens);
}

// A thread takes some heads of the tokens that share a reading of the cache. Whoever reads a row
// widens it, so heads are divided only where there are too few runs of tokens for the threads.
int heads_per_part(int num_heads, int64_t runs) {
  constexpr int kHeads = 4;  // the kernel's unit
  const int threads = current_team() == nullptr ? 1 : current_team()->size();
  if (runs % threads == 0 || runs >= 4 * threads) return num_heads;
  const int units = (num_heads + kHeads - 1) / kHeads;
  return (units + threads - 1) / threads * kHeads;
}

}  // namespace

void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o) {
  const AttentionGroup group = group_of(shape);
  check_shapes(group, cache, queries, q, o);
  const std::span<const int64_t> runs = attention_runs(queries);
  const int64_t num_runs = std::ssize(runs) - 1;
  const int part_heads = heads_per_part(shape.num_heads, num_runs);
  const int64_t parts = (shape.num_heads + part_heads - 1) / part_heads;
  parallel_for(num_runs * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = runs[i / parts], count = runs[i / parts + 1] - first;
      const int head = static_cast<int>(i % parts) * part_heads;
      AttentionGroup part = group;
      part.num_heads = std::min(part_heads, shape.num_heads - head);
      attend(part, cache, layer, queries.subspan(first, count),
             q.rows_from(first, count)
                 .columns_from(head * group.key_width, part.num_heads * group.key_width),
             o.rows_from(first, count)
                 .columns_from(head * group.value_width, part.num_heads * group.value_width));
    }
  });
}

void reference::mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                              std::span<const KvQuery> queries, Matrix<const float> q,
                              Matrix<float> o) {
  const AttentionGroup group = group_of(shape);
  check_shapes(group, cache, queries, q, o);
  reference::attend(group, cache, layer, queries, q, o);
}

}  // namespace troupe::layers
