// layers/linear_dot.h: what a product of bf16 inputs with bf16 or fp8 weights is, exactly.
//
// The instruction vdpbf16ps adds two products to an fp32 sum (Intel SDM, vol. 2, VDPBF16PS):
//   sum = fma(x1, w1, sum), then sum = fma(x0, w0, sum)
// rounded to nearest even each; subnormal inputs and results count as zeros of their sign. Section
// 5 of docs/design.md holds as for fp32 products, with other chains:
//   bf16  inside a leaf, a chain of such steps over pairs of inputs (k, k + 1) from the leaf's
//         beginning, started at 0; an odd last input is paired with zeros
//   fp8   inside a part of a leaf that shares a scale (a block of 128 inputs or what the leaf cuts
//         of it) the same over the codes' values, which bf16 holds exactly; parts are then added in
//         ascending order, sum = fma(part, scale, sum), as the reference implementations of
//         DeepSeek scale their partial sums (DeepSeek-V3, section 3.3.2)
// Leaves are added by the tree of pairs as everywhere.
#pragma once

#include <vector>

#include "base/bf16.h"
#include "layers/linear.h"

namespace troupe::layers::reference {

// The tree in which leaves are added.
float sum_of_pairs(std::vector<float> values);

// One step, in plain arithmetic.
float dot_pair(float sum, Bf16 w0, Bf16 w1, Bf16 x0, Bf16 x1);

// The definition. x is of form kBf16, w of type kBf16 or kFp8.
void linear_dot(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding);

}  // namespace troupe::layers::reference
