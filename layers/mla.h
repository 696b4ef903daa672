// layers/mla.h: multi-head latent attention over the paged cache, in its absorbed form
// (DeepSeek-V2, section 2.1; inference/model.py MLA with attn_impl "absorb").
#pragma once

#include <cstdint>
#include <span>

#include "base/matrix.h"
#include "layers/attention.h"

namespace troupe::layers {

struct MlaShape {
  int num_heads = 0;
  int kv_lora_rank = 0;
  int rope_dim = 0;
  float softmax_scale = 0;
};

// o[t][h] = sum over j <= position of softmax_j(scale * q[t][h] . row_j) * latent_j
// One group of layers/attention.h: the latent row is the key, and its beginning the value.
//   q  [tokens, num_heads * (kv_lora_rank + rope_dim)]   per head: absorbed, then rotated query
//   o  [tokens, num_heads * kv_lora_rank]                out, fp32, not rounded
void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o);

namespace reference {
void mla_attention(const MlaShape& shape, const KvCache& cache, int layer,
                   std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o);
}  // namespace reference

}  // namespace troupe::layers
