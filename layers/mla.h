// layers/mla.h: multi-head latent attention over the paged cache, in its absorbed form
// (DeepSeek-V2, section 2.1; inference/model.py MLA with attn_impl "absorb").
#pragma once

#include <cstdint>
#include <span>

#include "base/matrix.h"
#include "layers/kv_cache.h"

namespace troupe::layers {

// Positions that share one rescaling of the online softmax. Chunks begin at absolute multiples of
// this, whatever the cache's block_size, so a token's result does not depend on how its prompt was
// cut, on its batch, or on paging.
inline constexpr int kKvChunk = 64;

struct MlaShape {
  int num_heads = 0;
  int kv_lora_rank = 0;
  int rope_dim = 0;
  float softmax_scale = 0;
};

// o[t][h] = sum over j <= position of softmax_j(scale * q[t][h] . row_j) * latent_j
//
// For each chunk in ascending order: scores (dot products over 16 lanes, one tree), the chunk's
// maximum, p = exp(score - max so far), sums rescaled when the maximum grows; the division is last.
// fp32, exp as in layers/exp.h. The token's own row must already be in the cache.
//   q  [tokens, num_heads * (kv_lora_rank + rope_dim)]   per head: absorbed, then rotated query
//   o  [tokens, num_heads * kv_lora_rank]                out, fp32, not rounded
void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o);

namespace reference {
void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o);
}  // namespace reference

}  // namespace troupe::layers
