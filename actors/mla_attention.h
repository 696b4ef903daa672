// actors/mla_attention.h: multi-head latent attention of one rank, absorbed (layers/mla.h).
//
// A cache row is a position's latent and its rotated key, the same for all heads: the ranks of an
// attention group each keep all of them.
#pragma once

#include <vector>

#include "actors/attention_op.h"
#include "actors/rotary_rows.h"
#include "layers/linear.h"
#include "layers/mla.h"
#include "layers/prepared_rows.h"

namespace troupe::actors {

class MlaAttention final : public AttentionOp {
 public:
  explicit MlaAttention(const RankContext& context);

  void begin_forward(std::span<const layers::KvQuery> queries,
                     Matrix<const int32_t> positions) override;
  Matrix<float> attend(int layer, const model::AttentionWeights& weights,
                       Matrix<const float> normed) override;

 private:
  Matrix<float> project(const model::MlaWeights& weights, Matrix<const float> normed);
  // Norm and rotation of the latents, which then lie in the cache.
  void write_latents(int layer, const model::MlaWeights& weights, int64_t rows);
  // Some rows, from their queries to the outputs of their heads.
  void attend_rows(int layer, const model::MlaWeights& weights,
                   std::span<const layers::KvQuery> queries, Matrix<const float> query,
                   Matrix<float> heads_out);
  Matrix<float> absorb(const model::MlaWeights& weights, Matrix<const float> query);
  void to_values(const model::MlaWeights& weights, Matrix<const float> attended,
                 Matrix<float> heads_out);

  RankContext context_;
  layers::MlaShape shape_;
  RotaryRows rotary_;
  layers::InputBuffer inputs_, latent_inputs_;
  std::vector<layers::InputBuffer> head_inputs_;  // [heads]
  std::span<const layers::KvQuery> queries_;

  std::vector<layers::LinearJob> jobs_;  // one per head

  msg::Tensor query_latent_, query_, latent_, heads_out_;  // [max_rows, ...]
  msg::Tensor absorbed_, attended_;                        // [rows at a time, ...]
};

}  // namespace troupe::actors
