// layers/attention.h: attention of tokens over the paged cache, for heads that share one key and
// one value head. Absorbed MLA (layers/mla.h) is one such group, grouped-query attention
// (layers/gqa.h) one per key and value head.
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

struct AttentionGroup {
  int num_heads = 0;
  // Where a cache row holds the key and the value; the value may be the beginning of the key.
  int64_t key_offset = 0, key_width = 0;
  int64_t value_offset = 0, value_width = 0;
  float softmax_scale = 0;
  int64_t window = 0;            // positions seen, up to the query's own; 0: all
  const float* sinks = nullptr;  // [num_heads], or none
};

// Tokens of a sequence that share one reading of the cache.
inline constexpr int kAttentionTokens = 8;

// o[t][h] = sum over j in [first, queries[t].position] of p_j * value_j, with
//   p = softmax_j(scale * q[t][h] . key_j), over those j and, if there is one, the sink:
//   one more score, with no value.
//
// For each chunk in ascending order: scores (dot products over 16 lanes, one tree), the chunk's
// maximum, p = exp(score - max so far), sums rescaled when the maximum grows; the division is last.
// fp32, exp as in layers/exp.h; over a bf16 cache, where the instruction set multiplies bf16,
// instead
//   q and p are rounded to bf16 (the sum of p is that of the rounded ones), and both products are
//   chains of the steps of layers/linear_dot.h: over pairs of elements (i, i + 1) from 0 on, and
//   over pairs of positions (2 i, 2 i + 1), in which one that is not seen counts as zeros.
// The tokens' own rows must already be in the cache. Which tokens are
// attended to together changes no bit.
//   queries  of one sequence, 1 to kAttentionTokens
//   q  [tokens, num_heads * key_width]      o  [tokens, num_heads * value_width]  out, not rounded
void attend(const AttentionGroup& group, const KvCache& cache, int layer,
            std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o);

// Where runs of consecutive queries that attend() takes together begin, then queries.size().
// Valid until the next call by this thread.
std::span<const int64_t> attention_runs(std::span<const KvQuery> queries);

namespace reference {
// The definition, on the instruction set in use.
void attend(const AttentionGroup& group, const KvCache& cache, int layer,
            std::span<const KvQuery> queries, Matrix<const float> q, Matrix<float> o);
}  // namespace reference

}  // namespace troupe::layers
