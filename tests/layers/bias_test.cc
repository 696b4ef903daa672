#include "layers/bias.h"

#include <gtest/gtest.h>

#include <vector>

namespace troupe::layers {
namespace {

TEST(AddBias, AddsToEveryRowAndRoundsOnce) {
  std::vector<float> y{1, 2, -9, 3, 1.0f / 3, -9};
  const std::vector<float> bias{0.5f, 1.0f / 3};

  add_bias({y.data(), 2, 2, 3}, bias, Rounding::kNone);

  EXPECT_EQ(y, (std::vector<float>{1.5f, 2 + 1.0f / 3, -9, 3.5f, 1.0f / 3 + 1.0f / 3, -9}));
  add_bias({y.data(), 2, 2, 3}, bias, Rounding::kBf16);
  EXPECT_EQ(y[1], round_to_bf16(2 + 1.0f / 3 + 1.0f / 3));
  EXPECT_EQ(y[2], -9);
}

TEST(AddBias, RefusesABiasOfAnotherWidth) {
  std::vector<float> y(4), bias(3);
  EXPECT_THROW(add_bias({y.data(), 1, 4}, bias, Rounding::kNone), std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
