#include "base/bf16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace troupe {
namespace {

constexpr uint32_t kExponent = 0x7f800000;
constexpr double kBeyondLargest = 0x1p128;  // what stands for infinity when distances are compared

float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

// The value of a bfloat16 in double, from sign, exponent and mantissa.
double value_of(uint32_t bits16) {
  const uint32_t exponent = bits16 >> 7 & 0xff, mantissa = bits16 & 0x7f;
  const double magnitude =
      exponent == 0xff ? kBeyondLargest
                       : std::ldexp(exponent == 0 ? mantissa : 128 + mantissa,
                                    static_cast<int>(exponent == 0 ? 1 : exponent) - 127 - 7);
  return bits16 & 0x8000 ? -magnitude : magnitude;
}

// The definition: the nearer of the two neighbours, of equally near ones the even.
uint32_t nearest(uint32_t bits32) {
  const uint32_t toward_zero = bits32 >> 16, away = toward_zero + 1;
  const double x = static_cast<double>(from_bits(bits32));
  const double below = std::abs(x - value_of(toward_zero)), above = std::abs(value_of(away) - x);
  if (below == above) return toward_zero & 1 ? away : toward_zero;
  return below < above ? toward_zero : away;
}

TEST(Bf16, EveryValueSurvivesWideningAndRounding) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float wide = to_float(Bf16{static_cast<uint16_t>(bits)});
    if (std::isnan(wide)) continue;
    ASSERT_EQ(to_bf16(wide).bits, bits);
    if (std::isfinite(wide)) {
      ASSERT_EQ(static_cast<double>(wide), value_of(bits));
    }
  }
}

// Between two neighbours rounding changes at the middle alone, so the values around it, and those
// next to the neighbours, stand for all.
TEST(Bf16, EveryGapIsRoundedToTheNearerEnd) {
  for (uint32_t high = 0; high <= 0xffff; ++high) {
    if ((high << 16 & kExponent) == kExponent) continue;  // infinities and NaNs
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t bits = high << 16 | low;
      ASSERT_EQ(to_bf16(from_bits(bits)).bits, nearest(bits)) << std::hex << bits;
    }
  }
}

TEST(Bf16, EveryFloatOfAFewGapsIsRoundedToTheNearerEnd) {
  for (const uint32_t high : {0x0000u, 0x0080u, 0x3f80u, 0x3f81u, 0xbfffu, 0x7f7fu}) {
    for (uint32_t low = 0; low <= 0xffff; ++low) {
      const uint32_t bits = high << 16 | low;
      ASSERT_EQ(to_bf16(from_bits(bits)).bits, nearest(bits)) << std::hex << bits;
    }
  }
}

TEST(Bf16, LargestFloatsBecomeInfinity) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(round_to_bf16(std::numeric_limits<float>::max()), kInfinity);
  EXPECT_EQ(round_to_bf16(-std::numeric_limits<float>::max()), -kInfinity);
  EXPECT_EQ(round_to_bf16(kInfinity), kInfinity);
  EXPECT_EQ(round_to_bf16(-kInfinity), -kInfinity);
}

TEST(Bf16, NanNeverBecomesANumber) {
  for (uint32_t low = 1; low <= 0xffff; low = low * 2 + 1) {
    EXPECT_TRUE(std::isnan(round_to_bf16(from_bits(kExponent | low))));
    EXPECT_TRUE(std::isnan(round_to_bf16(from_bits(0x80000000 | kExponent | low))));
  }
  EXPECT_TRUE(std::isnan(round_to_bf16(from_bits(0x7fffffff))));
  EXPECT_TRUE(std::isnan(round_to_bf16(from_bits(0xffffffff))));
}

TEST(Bf16, ZeroKeepsItsSign) {
  EXPECT_EQ(to_bf16(0.0f).bits, 0);
  EXPECT_EQ(to_bf16(-0.0f).bits, 0x8000);
}

}  // namespace
}  // namespace troupe
