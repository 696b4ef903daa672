// layers/linear_quantized.h: y = W x for 4- and 8-bit weights: what linear() does for them.
//
// Numbers. A segment's sum is a dot product of integers, exact. A leaf is a chain of fused
// multiply-adds over its segments in ascending k, started at 0: sum + float(dot) * (weight scale *
// input scale), where float() rounds to nearest even. Leaves are summed by a binary tree of pairs.
// So y depends on no layout, row count, thread or instruction set (docs/design.md, section 5).
#pragma once

#include "base/matrix.h"
#include "layers/packed_matrix.h"
#include "layers/prepared_rows.h"
#include "layers/rounding.h"

namespace troupe::layers {

// w: a quantised type; x: prepared for it (quantize_rows). Otherwise as linear().
void linear_quantized(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y,
                      Rounding rounding);

namespace reference {
// The definition: loops over codes and scales.
void linear_quantized(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y,
                      Rounding rounding);
}  // namespace reference

}  // namespace troupe::layers
