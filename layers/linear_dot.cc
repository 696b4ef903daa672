#include "layers/linear_dot.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace troupe::layers::reference {
namespace {

float without_subnormals(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

// Element (n, k) as stored: an fp8 code's value, without its scale.
Bf16 stored_weight(const PackedMatrix& w, int64_t n, int64_t k) {
  const int64_t i = (n / kTileRows * w.cols + k) * kTileRows + n % kTileRows;
  if (w.type == WeightType::kBf16) return reinterpret_cast<const Bf16*>(w.data)[i];
  return to_bf16(fp8_e4m3_to_float(static_cast<uint8_t>(w.data[i])));
}

// Inputs [begin, end) of row n.
float chain(const PackedMatrix& w, int64_t n, const Bf16* x, int64_t begin, int64_t end) {
  float sum = 0;
  for (int64_t k = begin; k < end; k += 2) {
    const bool pair = k + 1 < end;
    sum = dot_pair(sum, stored_weight(w, n, k), pair ? stored_weight(w, n, k + 1) : Bf16{0}, x[k],
                   pair ? x[k + 1] : Bf16{0});
  }
  return sum;
}

float leaf_sum(const PackedMatrix& w, int64_t n, const Bf16* x, int64_t begin, int64_t end) {
  if (w.type == WeightType::kBf16) return chain(w, n, x, begin, end);
  const int64_t k_begin = w.leaves.k_begin();
  float sum = 0;
  for (int64_t k = begin, next; k < end; k = next) {
    const int64_t block = (k_begin + k) / kFp8Block;
    next = std::min(end, (block + 1) * kFp8Block - k_begin);
    const int64_t tile_block = n / kTileRows * w.k_blocks() + block - k_begin / kFp8Block;
    const float scale = w.scales[tile_block * kTileRows + n % kTileRows];
    sum = std::fma(chain(w, n, x, k, next), scale, sum);
  }
  return sum;
}

}  // namespace

float dot_pair(float sum, Bf16 w0, Bf16 w1, Bf16 x0, Bf16 x1) {
  const auto step = [](float a, float b, float c) {
    return without_subnormals(
        std::fma(without_subnormals(a), without_subnormals(b), without_subnormals(c)));
  };
  return step(to_float(x0), to_float(w0), step(to_float(x1), to_float(w1), sum));
}

void linear_dot(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding) {
  const LeafRange& leaves = w.leaves;
  for (int64_t t = 0; t < x.rows; ++t) {
    const auto* inputs = reinterpret_cast<const Bf16*>(x.data + t * x.row_bytes);
    for (int64_t n = 0; n < w.rows; ++n) {
      std::vector<float> sums;
      for (int leaf = leaves.first_leaf; leaf < leaves.first_leaf + leaves.num_leaves; ++leaf)
        sums.push_back(leaf_sum(w, n, inputs, leaves.leaf_begin(leaf) - leaves.k_begin(),
                                leaves.leaf_begin(leaf + 1) - leaves.k_begin()));
      const float sum = sum_of_pairs(std::move(sums));
      y.row(t)[n] = rounding == Rounding::kBf16 ? round_to_bf16(sum) : sum;
    }
  }
}

}  // namespace troupe::layers::reference
