#include "layers/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/bf16.h"
#include "every_isa.h"

namespace troupe::layers {
namespace {

constexpr float kEps = 1e-6f;

TEST(RmsNorm, EqualsItsDefinitionBitForBitAtAnyWidth) {
  for (const int64_t width : {1, 2, 15, 16, 17, 40, 127, 512, 1000, 7168}) {
    for (const Rounding rounding : {Rounding::kNone, Rounding::kBf16}) {
      constexpr int64_t kRows = 3;
      const int64_t stride = width + 1;  // rows that begin at any alignment
      const std::vector<float> x = normal_floats(kRows * stride, 1);
      const std::vector<float> weight = normal_floats(width, 2);
      std::vector<float> want(kRows * width), got(kRows * stride, -5.0f);
      const Matrix<const float> x_rows(x.data(), kRows, width, stride);
      const Matrix<float> got_rows(got.data(), kRows, width, stride);
      reference::rms_norm(x_rows, weight, kEps, Matrix(want.data(), kRows, width), rounding);

      on_every_isa([&] {
        rms_norm(x_rows, weight, kEps, got_rows, rounding);

        expect_same_bits(got_rows, Matrix<const float>(want.data(), kRows, width));
        for (int64_t t = 0; t < kRows; ++t) EXPECT_EQ(got_rows.row(t)[width], -5.0f);
      });
    }
  }
}

TEST(RmsNorm, DividesByTheRootOfTheMeanSquare) {
  constexpr int64_t kWidth = 1000;
  const std::vector<float> x = normal_floats(kWidth, 3), weight = normal_floats(kWidth, 4);
  double squares = 0;
  for (const float value : x) squares += static_cast<double>(value) * value;
  const double root = std::sqrt(squares / kWidth + kEps);
  std::vector<float> y(kWidth);

  rms_norm({x.data(), 1, kWidth}, weight, kEps, {y.data(), 1, kWidth}, Rounding::kNone);

  // The sum is 63 steps in a lane and 4 in the tree, each within 2^-24; the root halves that.
  constexpr double kBound = (67.0 / 2 + 4) * 0x1p-24;
  for (int64_t i = 0; i < kWidth; ++i) {
    const double want = weight[i] * (x[i] / root);
    EXPECT_NEAR(y[i], want, kBound * std::fabs(want));
  }
}

TEST(RmsNorm, MayWriteOverItsInput) {
  constexpr int64_t kWidth = 40;
  const std::vector<float> x = normal_floats(kWidth, 5), weight(kWidth, 1.0f);
  std::vector<float> want(kWidth);
  rms_norm({x.data(), 1, kWidth}, weight, kEps, {want.data(), 1, kWidth}, Rounding::kBf16);

  on_every_isa([&] {
    std::vector<float> in_place = x;
    const Matrix<float> row(in_place.data(), 1, kWidth);
    rms_norm(row, weight, kEps, row, Rounding::kBf16);
    EXPECT_EQ(in_place, want);
  });
}

TEST(RmsNorm, KeepsARowOfZerosAtZero) {
  const std::vector<float> x(20, 0.0f), weight(20, 3.0f);
  std::vector<float> y(20, 1.0f);

  on_every_isa([&] {
    rms_norm({x.data(), 1, 20}, weight, kEps, {y.data(), 1, 20}, Rounding::kNone);
    EXPECT_EQ(y, x);
  });
}

TEST(RmsNorm, KeepsANanInItsRow) {
  std::vector<float> x = normal_floats(2 * 33, 6);
  x[5] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> weight(33, 1.0f);
  std::vector<float> y(2 * 33);

  on_every_isa([&] {
    rms_norm({x.data(), 2, 33}, weight, kEps, {y.data(), 2, 33}, Rounding::kBf16);
    for (int i = 0; i < 33; ++i) EXPECT_TRUE(std::isnan(y[i]));
    for (int i = 33; i < 66; ++i) EXPECT_FALSE(std::isnan(y[i]));
  });
}

TEST(RmsNorm, RefusesShapesThatDoNotMatch) {
  std::vector<float> x(8), y(8), weight(3);
  EXPECT_THROW(rms_norm({x.data(), 2, 4}, weight, kEps, {y.data(), 2, 4}, Rounding::kNone),
               std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
