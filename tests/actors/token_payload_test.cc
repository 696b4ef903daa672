#include "actors/token_payload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace troupe::actors {
namespace {

using layers::Rounding;

std::vector<float> there_and_back(const std::vector<float>& row, PayloadFormat format,
                                  Rounding rounding) {
  std::vector<float> words(payload_bytes(format, row.size()) / sizeof(float));
  auto* bytes = reinterpret_cast<std::byte*>(words.data());
  pack_payload(row, format, bytes);
  std::vector<float> back(row.size());
  unpack_payload(bytes, format, rounding, back);
  return back;
}

TEST(TokenPayload, TakesTwoBytesOfBf16AndOneOfInt8AndItsScale) {
  EXPECT_EQ(payload_bytes(PayloadFormat::kF32, 7168), 28672u);
  EXPECT_EQ(payload_bytes(PayloadFormat::kBf16, 7168), 14336u);
  EXPECT_EQ(payload_bytes(PayloadFormat::kInt8, 7168), 7172u);
  EXPECT_EQ(payload_bytes(PayloadFormat::kInt8, 5), 12u);
}

TEST(TokenPayload, RowsInTheDtypeArriveAsTheyWere) {
  const std::vector<float> row{0, -1.5f, 3.140625f, 1e30f, -1e-30f};
  const std::vector<float> rounded{round_to_bf16(0), -1.5f, 3.140625f, round_to_bf16(1e30f),
                                   round_to_bf16(-1e-30f)};

  EXPECT_EQ(there_and_back(row, PayloadFormat::kF32, Rounding::kNone), row);
  EXPECT_EQ(there_and_back(rounded, PayloadFormat::kBf16, Rounding::kBf16), rounded);
}

// By hand: the largest is 254, so the scale is 2; 5 is 2.5 steps and goes to the even 2, 7 is 3.5
// and goes to 4.
TEST(TokenPayload, Int8RoundsToTheNearestStepOfItsRow) {
  const std::vector<float> row{-254, 5, 7, -0.9f, 100};

  EXPECT_THAT(there_and_back(row, PayloadFormat::kInt8, Rounding::kNone),
              testing::ElementsAre(-254, 4, 8, 0, 100));
}

TEST(TokenPayload, Int8IsHalfAStepOffAtMostWhateverTheSize) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const float size : {1e-30f, 1.0f, 1e30f}) {
    std::vector<float> row(1'000);
    float largest = 0;
    for (float& x : row) {
      x = size * normal(random);
      largest = std::max(largest, std::abs(x));
    }

    const std::vector<float> back = there_and_back(row, PayloadFormat::kInt8, Rounding::kNone);

    for (size_t i = 0; i < row.size(); ++i)
      ASSERT_LE(std::abs(back[i] - row[i]), largest / 127 * 0.50001f) << i;
  }
}

TEST(TokenPayload, Int8GivesValuesOfTheDtype) {
  for (const float x :
       there_and_back({1, 0.3f, 0.77f, -0.123f}, PayloadFormat::kInt8, Rounding::kBf16))
    EXPECT_EQ(x, round_to_bf16(x));
}

TEST(TokenPayload, Int8KeepsZerosAndDoesNotHideWhatIsNotFinite) {
  EXPECT_THAT(there_and_back({0, 0, 0}, PayloadFormat::kInt8, Rounding::kNone),
              testing::ElementsAre(0, 0, 0));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")})
    EXPECT_THAT(there_and_back({1, bad, 2}, PayloadFormat::kInt8, Rounding::kBf16),
                testing::Each(testing::IsNan()));
}

}  // namespace
}  // namespace troupe::actors
