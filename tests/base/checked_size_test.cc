#include "base/checked_size.h"

#include <gtest/gtest.h>

#include <limits>

namespace troupe {
namespace {

// Every pair of 8-bit numbers, against the same in 32 bits.
template <class T>
void expect_as_in_int() {
  constexpr int kLeast = std::numeric_limits<T>::min(), kMost = std::numeric_limits<T>::max();
  const auto expected = [](int exact) {
    return exact < kLeast || exact > kMost ? std::nullopt : std::optional(static_cast<T>(exact));
  };
  for (int a = kLeast; a <= kMost; ++a) {
    for (int b = kLeast; b <= kMost; ++b) {
      const auto x = static_cast<T>(a), y = static_cast<T>(b);
      ASSERT_EQ(checked_add(x, y), expected(a + b)) << a << " + " << b;
      ASSERT_EQ(checked_sub(x, y), expected(a - b)) << a << " - " << b;
      ASSERT_EQ(checked_mul(x, y), expected(a * b)) << a << " * " << b;
    }
  }
}

TEST(CheckedSize, IsTheSumDifferenceOrProductOrNothing) {
  expect_as_in_int<int8_t>();
  expect_as_in_int<uint8_t>();
}

TEST(CheckedSize, AProductOfManyIsNothingOnceItHasNotFitted) {
  constexpr uint64_t kHalf = uint64_t{1} << 32;

  EXPECT_EQ(checked_product<uint64_t>({}), 1u);
  EXPECT_EQ(checked_product<uint64_t>({3, 5, 7}), 105u);
  EXPECT_EQ(checked_product<uint64_t>({kHalf, kHalf - 1}), kHalf * (kHalf - 1));
  EXPECT_EQ(checked_product<uint64_t>({kHalf, kHalf, 0}), std::nullopt);
}

TEST(CheckedSize, ARangeIsInsideWithoutAddingItsEnds) {
  EXPECT_TRUE(is_inside(0, 10, 10));
  EXPECT_TRUE(is_inside(10, 0, 10));
  EXPECT_FALSE(is_inside(10, 1, 10));
  EXPECT_FALSE(is_inside(11, 0, 10));
  EXPECT_FALSE(is_inside(5, UINT64_MAX - 1, 10));
  EXPECT_FALSE(is_inside(UINT64_MAX, 1, 10));
}

}  // namespace
}  // namespace troupe
