#include "layers/swiglu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "every_isa.h"

namespace troupe::layers {
namespace {

TEST(Swiglu, EqualsItsDefinitionBitForBitAtAnyWidth) {
  for (const int64_t width : {1, 2, 15, 16, 17, 40, 127, 2048}) {
    for (const Rounding rounding : {Rounding::kNone, Rounding::kBf16}) {
      constexpr int64_t kRows = 3;
      const int64_t stride = 2 * width + 1;
      std::vector<float> gate_up = normal_floats(kRows * stride, 1);
      for (float& value : gate_up) value *= 10;
      std::vector<float> want(kRows * width), got(kRows * stride, -5.0f);
      const Matrix<const float> input(gate_up.data(), kRows, 2 * width, stride);
      const Matrix<float> got_rows(got.data(), kRows, width, stride);
      reference::swiglu(input, Matrix(want.data(), kRows, width), rounding);

      on_every_isa([&] {
        swiglu(input, got_rows, rounding);

        expect_same_bits(got_rows, Matrix<const float>(want.data(), kRows, width));
        for (int64_t t = 0; t < kRows; ++t) EXPECT_EQ(got_rows.row(t)[width], -5.0f);
      });
    }
  }
}

TEST(Swiglu, IsTheGateTimesItsSigmoidTimesUp) {
  constexpr int64_t kWidth = 500;
  std::vector<float> gate_up = normal_floats(2 * kWidth, 2), out(kWidth);
  for (int64_t i = 0; i < kWidth; ++i) gate_up[i] *= 20;

  swiglu({gate_up.data(), 1, 2 * kWidth}, {out.data(), 1, kWidth}, Rounding::kNone);

  for (int64_t i = 0; i < kWidth; ++i) {
    const double gate = gate_up[i], up = gate_up[kWidth + i];
    const double want = gate / (1 + std::exp(-gate)) * up;
    // exp within 2 ulp (2^-22), then a sum, a quotient and a product.
    EXPECT_NEAR(out[i], want, (0x1p-22 + 3 * 0x1p-24) * std::fabs(want)) << gate;
  }
}

TEST(Swiglu, HasNoInfinityForLargeGates) {
  const std::vector<float> gate_up{1e4f, -1e4f, 200, -200, 1, 1, 1, 1};
  std::vector<float> out(4);

  on_every_isa([&] {
    swiglu({gate_up.data(), 1, 8}, {out.data(), 1, 4}, Rounding::kNone);

    EXPECT_EQ(out[0], 1e4f);
    EXPECT_NEAR(out[1], 0.0f, 1e-30f);
    EXPECT_EQ(out[2], 200.0f);
    EXPECT_NEAR(out[3], 0.0f, 1e-30f);
  });
}

TEST(Swiglu, KeepsANanInItsElement) {
  std::vector<float> gate_up(2 * 20, 1.0f), out(20);
  gate_up[3] = std::numeric_limits<float>::quiet_NaN();

  on_every_isa([&] {
    swiglu({gate_up.data(), 1, 40}, {out.data(), 1, 20}, Rounding::kBf16);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(std::isnan(out[i]), i == 3);
  });
}

TEST(ClampedSwiglu, EqualsItsDefinitionBitForBitAtAnyWidth) {
  for (const int64_t width : {1, 15, 16, 17, 40, 2880}) {
    for (const Rounding rounding : {Rounding::kNone, Rounding::kBf16}) {
      std::vector<float> gate_up = normal_floats(3 * 2 * width, 5);
      for (float& value : gate_up) value *= 8;
      std::vector<float> want(3 * width), got(3 * width);
      const Matrix<const float> input(gate_up.data(), 3, 2 * width);
      reference::clamped_swiglu({}, input, {want.data(), 3, width}, rounding);

      on_every_isa([&] {
        clamped_swiglu({}, input, {got.data(), 3, width}, rounding);

        expect_same_bits(Matrix<const float>(got.data(), 3, width),
                         Matrix<const float>(want.data(), 3, width));
      });
    }
  }
}

// gpt_oss/torch/model.py: x_glu.clamp(max=limit), x_linear.clamp(-limit, limit),
// x_glu * sigmoid(alpha * x_glu) * (x_linear + 1).
TEST(ClampedSwiglu, ClampsTheGateFromAboveAndUpFromBothSides) {
  const std::vector<float> gates{9, 7, -9, 0.5f, 2, -1}, ups{1, -9, 9, -0.25f, 7.5f, -1};
  std::vector<float> gate_up = gates, out(6);
  gate_up.insert(gate_up.end(), ups.begin(), ups.end());

  clamped_swiglu({}, {gate_up.data(), 1, 12}, {out.data(), 1, 6}, Rounding::kNone);

  for (int i = 0; i < 6; ++i) {
    const double gate = std::min(gates[i], 7.0f), up = std::clamp(ups[i], -7.0f, 7.0f);
    const double want = gate / (1 + std::exp(-1.702 * gate)) * (up + 1);
    EXPECT_NEAR(out[i], want, 1e-6 * std::fabs(want)) << i;
  }
}

TEST(ClampedSwiglu, KeepsANanInItsElement) {
  std::vector<float> gate_up(2 * 20, 1.0f), out(20);
  gate_up[3] = gate_up[20 + 4] = std::numeric_limits<float>::quiet_NaN();

  on_every_isa([&] {
    clamped_swiglu({}, {gate_up.data(), 1, 40}, {out.data(), 1, 20}, Rounding::kNone);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(std::isnan(out[i]), i == 3 || i == 4);
  });
}

TEST(Swiglu, RefusesShapesThatDoNotMatch) {
  std::vector<float> gate_up(8), out(8);
  EXPECT_THROW(swiglu({gate_up.data(), 1, 8}, {out.data(), 1, 8}, Rounding::kNone),
               std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
