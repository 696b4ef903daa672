// layers/linear.h: y = W x for one row to thousands, weights in the kernel's order.
//
// Numbers (docs/design.md, section 5). The K inputs of a product are cut into leaves. Inside a leaf
// the sum is one chain of fused multiply-adds in ascending k, in fp32, started at 0; leaves are
// then summed by a binary tree of pairs. Inputs prepared as bf16 have chains of their own
// (layers/linear_dot.h), by the same rules. So y[t][n] depends on row t of x and row n of W only:
// not on the number of rows, on threads, on tiles, nor on the instruction set. A row-parallel
// product (o_proj, down_proj) has kTpLeaves leaves whatever its tensor-parallel size; any other has
// one.
#pragma once

#include <span>

#include "base/matrix.h"
#include "layers/packed_matrix.h"
#include "layers/prepared_rows.h"
#include "layers/rounding.h"

namespace troupe::layers {

// y[t][n] = round(sum over k of W[n][k] x[t][k]), the sum as described above. For a matrix that
// holds some of the leaves it is their subtree's sum: use Rounding::kNone, and add the ranks'
// subtrees in the same tree.
//   x  [tokens, w.cols], floats or prepared for w (layers/prepared_rows.h)
//   y  [tokens, w.rows]  out; may not overlap x
// The calling thread's team takes tiles of W (layers/team.h).
void linear(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding);

// The same of several matrices, none of which reads what another writes: their tiles are one list
// for the team, however unequal the matrices' rows of x are.
struct LinearJob {
  const PackedMatrix* w = nullptr;
  PreparedRows x;
  Matrix<float> y;
};
void grouped_linear(std::span<const LinearJob> jobs, Rounding rounding);

namespace reference {
// The definition: three loops over an unpacked view of the same PackedMatrix, by x's form.
void linear(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding);
}  // namespace reference

}  // namespace troupe::layers
