// pack_rows and plan_packed of layers/packed_matrix.h.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/bf16.h"
#include "layers/linear.h"
#include "test_weights.h"

namespace troupe::layers {
namespace {

using SourceType = SourceRows::Type;

// Element (row, k) of a matrix of floats, found by the layout that layers/packed_matrix.h draws.
float f32_element(const PackedWeights& w, int64_t row, int64_t k) {
  float value;
  const int64_t i = (row / 16 * w.matrix.cols + k) * 16 + row % 16;
  std::memcpy(&value, w.data.data() + i * sizeof(float), sizeof(float));
  return value;
}

float bf16_element(const PackedWeights& w, int64_t row, int64_t k) {
  Bf16 value;
  const int64_t i = (row / 16 * w.matrix.cols + k) * 16 + row % 16;
  std::memcpy(&value, w.data.data() + i * sizeof(Bf16), sizeof(Bf16));
  return to_float(value);
}

TEST(PlanPacked, CountsWholeTilesAndTheBlocksThatAShardTouches) {
  const LeafRange shard{.k_total = 300, .total_leaves = 4, .first_leaf = 1, .num_leaves = 2};

  const PackedMatrix w = plan_packed(WeightType::kFp8, 17, shard);

  EXPECT_EQ(w.cols, 150);      // [75, 225)
  EXPECT_EQ(w.k_blocks(), 2);  // [0, 128) and [128, 256)
  EXPECT_EQ(w.tiles(), 2);
  EXPECT_EQ(w.data_bytes(), 2 * 150 * 16);
  EXPECT_EQ(w.scale_bytes(), 2 * 2 * 16 * sizeof(float));
}

TEST(PlanPacked, HasScalesForFp8Only) {
  EXPECT_EQ(plan_packed(WeightType::kBf16, 17, {.k_total = 300}).scale_bytes(), 0);
  EXPECT_EQ(plan_packed(WeightType::kBf16, 17, {.k_total = 300}).data_bytes(), 2 * 300 * 16 * 2);
}

TEST(PlanPacked, RefusesSizesAndLeavesThatCannotBe) {
  EXPECT_THROW(plan_packed(WeightType::kF32, -1, {.k_total = 8}), std::logic_error);
  EXPECT_THROW(plan_packed(WeightType::kF32, 8, {.k_total = int64_t{1} << 60}), std::logic_error);
  EXPECT_THROW(plan_packed(WeightType::kF32, 8,
                           {.k_total = 8, .total_leaves = 16, .first_leaf = 15, .num_leaves = 2}),
               std::logic_error);
}

TEST(PackRows, LaysEveryTypeOutInTilesOfSixteenRows) {
  constexpr int64_t kRows = 40, kCols = 130;
  for (const SourceType type : kSourceTypes) {
    const TestTensor source(type, kRows, kCols, 1);
    const PackedWeights f32 = source.pack(WeightType::kF32, {.k_total = kCols});
    const PackedWeights bf16 = source.pack(WeightType::kBf16, {.k_total = kCols});
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t k = 0; k < kCols; ++k) {
        ASSERT_EQ(f32_element(f32, row, k), source.values[row * kCols + k]);
        ASSERT_EQ(bf16_element(bf16, row, k), round_to_bf16(source.values[row * kCols + k]));
      }
    }
  }
}

TEST(PackRows, KeepsFp8CodesAndTheScaleOfEachRowAndBlock) {
  constexpr int64_t kRows = 140, kCols = 300;
  const LeafRange shard{.k_total = kCols, .total_leaves = 4, .first_leaf = 2, .num_leaves = 2};
  const TestTensor source(SourceType::kFp8, kRows, kCols, 2);

  const PackedWeights w = source.pack(WeightType::kFp8, shard);  // inputs [150, 300)

  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t k = 150; k < kCols; ++k) {
      const int64_t tile = row / 16, lane = row % 16, block = k / 128 - 150 / 128;
      const std::byte code = w.data[(tile * 150 + k - 150) * 16 + lane];
      const float scale = w.scales[(tile * 2 + block) * 16 + lane];
      ASSERT_EQ(code, source.data[row * kCols + k]);
      ASSERT_EQ(scale, source.scales[row / 128 * 3 + k / 128]);
    }
  }
}

TEST(PackRows, JoinsRowsThatComeInPieces) {
  constexpr int64_t kRows = 150, kCols = 140;
  for (const SourceType type : kSourceTypes) {
    const TestTensor source(type, kRows, kCols, 3);
    const PackedWeights whole = source.pack(same_type(type), {.k_total = kCols});

    PackedWeights pieces(same_type(type), kRows, {.k_total = kCols});
    for (int64_t row = 0, count = 1; row < kRows; row += count, count = row * 3 % 37 + 1) {
      count = std::min(count, kRows - row);
      pack_rows(pieces.matrix, row, count, source.from_row(row));
    }

    EXPECT_EQ(pieces.data, whole.data);
    EXPECT_EQ(pieces.scales, whole.scales);
  }
}

TEST(PackRows, LeavesThePaddingAlone) {
  const TestTensor source(SourceType::kF32, 17, 5, 4);
  const PackedWeights w = source.pack(WeightType::kF32, {.k_total = 5});
  for (int64_t row = 17; row < 32; ++row)
    for (int64_t k = 0; k < 5; ++k) EXPECT_EQ(f32_element(w, row, k), 0.0f);
}

TEST(PackRows, ReadsSourcesAtAnyAddress) {
  for (const SourceType type : kSourceTypes) {
    const TestTensor source(type, 20, 30, 5);
    const PackedWeights want = source.pack(same_type(type), {.k_total = 30});
    std::vector<std::byte> shifted(source.data.size() + 1);
    std::copy(source.data.begin(), source.data.end(), shifted.begin() + 1);
    SourceRows rows = source.from_row(0);
    rows.data = shifted.data() + 1;

    PackedWeights got(same_type(type), 20, {.k_total = 30});
    pack_rows(got.matrix, 0, 20, rows);

    EXPECT_EQ(got.data, want.data);
  }
}

TEST(PackRows, MarksRowsAndBlocksThatHoldAnFp8Nan) {
  TestTensor source(SourceType::kFp8, 20, 300, 6);
  source.data[2 * 300 + 130] = std::byte{0x7f};

  const PackedWeights w = source.pack(WeightType::kFp8, {.k_total = 300});

  for (int64_t row = 0; row < 20; ++row)
    for (int64_t block = 0; block < 3; ++block)
      EXPECT_EQ(std::isnan(w.scales[(row / 16 * 3 + block) * 16 + row % 16]),
                row == 2 && block == 1);
}

TEST(PackRows, RefusesRowsBeyondTheMatrixAndConversionsThatLose) {
  const TestTensor f32(SourceType::kF32, 4, 4, 7);
  PackedWeights w(WeightType::kF32, 4, {.k_total = 4}), fp8(WeightType::kFp8, 4, {.k_total = 4});
  EXPECT_THROW(pack_rows(w.matrix, 1, 4, f32.from_row(0)), std::logic_error);
  EXPECT_THROW(pack_rows(w.matrix, -1, 1, f32.from_row(0)), std::logic_error);
  EXPECT_THROW(pack_rows(fp8.matrix, 0, 4, f32.from_row(0)), std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
