#include "layers/rms_norm.h"

#include <cmath>

#include "base/bf16.h"
#include "layers/kernels.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

void check_shapes(Matrix<const float> x, std::span<const float> weight, Matrix<float> y) {
  TROUPE_CHECK(x.rows == y.rows && x.cols == y.cols, "x [{}, {}] y [{}, {}]", x.rows, x.cols,
               y.rows, y.cols);
  TROUPE_CHECK(std::cmp_equal(weight.size(), x.cols), "weight [{}] x [, {}]", weight.size(),
               x.cols);
}

}  // namespace

void rms_norm(Matrix<const float> x, std::span<const float> weight, float eps, Matrix<float> y,
              Rounding rounding) {
  check_shapes(x, weight, y);
  const Kernels& isa = kernels();
  parallel_for(x.rows, row_grain(x.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      isa.rms_norm_row({.x = x.row(t),
                        .weight = weight.data(),
                        .y = y.row(t),
                        .width = x.cols,
                        .eps = eps,
                        .round_to_bf16 = rounding == Rounding::kBf16});
  });
}

namespace reference {

void rms_norm(Matrix<const float> x, std::span<const float> weight, float eps, Matrix<float> y,
              Rounding rounding) {
  check_shapes(x, weight, y);
  for (int64_t t = 0; t < x.rows; ++t) {
    float sums[16] = {};
    for (int64_t i = 0; i < x.cols; ++i)
      sums[i % 16] = std::fma(x.row(t)[i], x.row(t)[i], sums[i % 16]);
    for (int half = 8; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];

    const float root = std::sqrt(sums[0] / static_cast<float>(x.cols) + eps);
    for (int64_t i = 0; i < x.cols; ++i) {
      const float value = weight[i] * (x.row(t)[i] / root);
      y.row(t)[i] = rounding == Rounding::kBf16 ? round_to_bf16(value) : value;
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
