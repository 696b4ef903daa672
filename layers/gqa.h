// layers/gqa.h: grouped-query attention over the paged cache (Ainslie et al., 2023), with GPT-OSS's
// sliding window and attention sinks (openai/gpt-oss, gpt_oss/torch/model.py, sdpa).
#pragma once

#include <cstdint>
#include <span>

#include "base/matrix.h"
#include "layers/attention.h"

namespace troupe::layers {

// The heads of one rank, which may begin and end inside a group of query heads.
struct GqaShape {
  int num_heads = 0;
  int num_kv_heads = 0;  // that these heads read
  int heads_per_kv = 1;  // query heads of the whole model that share a key and value head
  int first_head = 0;    // place of head 0 in its group, < heads_per_kv
  int head_dim = 0;
  float softmax_scale = 0;
};

// A cache row holds the keys of the rank's kv heads, then their values; it may be longer.
//   o[t][h] = sum over seen j of softmax_j(scale * q[t][h] . key_j[g]) * value_j[g],
//   g = (first_head + h) / heads_per_kv
// seen: the last `sliding_window` positions up to the query's own, or all (0). sinks [num_heads]: a
// score of each head that takes part in the softmax and has no value; empty: none.
//   q  [tokens, num_heads * head_dim], rotated      o  the same  out, fp32, not rounded
void gqa_attention(const GqaShape& shape, const KvCache& cache, int layer, int64_t sliding_window,
                   std::span<const float> sinks, std::span<const KvQuery> queries,
                   Matrix<const float> q, Matrix<float> o);

namespace reference {
void gqa_attention(const GqaShape& shape, const KvCache& cache, int layer, int64_t sliding_window,
                   std::span<const float> sinks, std::span<const KvQuery> queries,
                   Matrix<const float> q, Matrix<float> o);
}  // namespace reference

}  // namespace troupe::layers
