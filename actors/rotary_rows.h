// actors/rotary_rows.h: the rotary angles of a forward's rows, shared by all its layers.
#pragma once

#include "actors/rank_context.h"
#include "layers/rope.h"

namespace troupe::actors {

class RotaryRows {
 public:
  explicit RotaryRows(const RankContext& context);

  // positions [rows, 1]
  void set_positions(Matrix<const int32_t> positions);

  // Rotates `num_vectors` vectors of each row in place, the first at column 0, `stride` apart.
  void rotate(Matrix<float> rows, int num_vectors, int64_t stride) const;

 private:
  const Workspace& workspace_;
  layers::Rounding rounding_;
  layers::RopePairs pairs_;
  layers::Rope rope_;
  msg::Tensor cos_, sin_;  // [max_rows, qk_rope_head_dim / 2]
};

}  // namespace troupe::actors
