// tests/layers/every_isa.h: runs a check on every instruction set of this machine.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <random>
#include <vector>

#include "base/matrix.h"
#include "layers/isa.h"

namespace troupe::layers {

template <class Check>
void on_every_isa(const Check& check) {
  const Isa before = active_isa();
  for (const Isa isa : supported_isas()) {
    SCOPED_TRACE(isa_name(isa));
    force_isa(isa);
    check();
  }
  force_isa(before);
}

inline std::vector<float> normal_floats(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// Equal bit for bit, so that 0 and -0 differ; a NaN equals a NaN.
inline bool same_bits(float a, float b) {
  if (a != a) return b != b;
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

inline void expect_same_bits(Matrix<const float> got, Matrix<const float> want) {
  ASSERT_EQ(got.rows, want.rows);
  ASSERT_EQ(got.cols, want.cols);
  for (int64_t r = 0; r < got.rows; ++r)
    for (int64_t c = 0; c < got.cols; ++c)
      ASSERT_TRUE(same_bits(got.row(r)[c], want.row(r)[c]))
          << "[" << r << ", " << c << "] " << got.row(r)[c] << " and not " << want.row(r)[c];
}

}  // namespace troupe::layers
