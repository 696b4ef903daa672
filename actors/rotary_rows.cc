#include "actors/rotary_rows.h"

namespace troupe::actors {

RotaryRows::RotaryRows(const RankContext& context)
    : workspace_(context.workspace),
      rounding_(context.rounding),
      pairs_(context.config.rope_pairs),
      rope_(static_cast<int>(context.config.qk_rope_head_dim), context.config.rope_theta,
            context.config.yarn),
      cos_(context.workspace.allocate(context.max_rows, rope_.dim() / 2)),
      sin_(context.workspace.allocate(context.max_rows, rope_.dim() / 2)) {}

void RotaryRows::set_positions(Matrix<const int32_t> positions) {
  rope_.angles({positions.data, static_cast<size_t>(positions.rows)},
               workspace_.floats(first_rows(cos_, positions.rows)),
               workspace_.floats(first_rows(sin_, positions.rows)));
}

void RotaryRows::rotate(Matrix<float> rows, int num_vectors, int64_t stride) const {
  layers::apply_rope(rows, num_vectors, stride, workspace_.floats(first_rows(cos_, rows.rows)),
                     workspace_.floats(first_rows(sin_, rows.rows)), rounding_, pairs_);
}

}  // namespace troupe::actors
