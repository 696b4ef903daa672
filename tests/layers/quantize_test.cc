#include "layers/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "every_isa.h"
#include "layers/linear_quantized.h"
#include "test_weights.h"

namespace troupe::layers {
namespace {

using SourceType = SourceRows::Type;

LeafRange whole(int64_t k, int leaves) {
  return {.k_total = k, .total_leaves = leaves, .first_leaf = 0, .num_leaves = leaves};
}

// A row of inputs as it lies in memory.
struct Row {
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> offsets;

  bool operator==(const Row&) const = default;
};

std::vector<Row> rows_of(const std::vector<std::byte>& bytes, const QuantizedShape& shape) {
  std::vector<Row> rows;
  for (size_t at = 0; at < bytes.size(); at += shape.row_bytes) {
    Row row{std::vector<int8_t>(shape.padded_cols), std::vector<float>(shape.segments),
            std::vector<int32_t>(shape.segments)};
    std::memcpy(row.codes.data(), &bytes[at], shape.padded_cols);
    std::memcpy(row.scales.data(), &bytes[at + shape.row_scales_at], shape.segments * 4);
    std::memcpy(row.offsets.data(), &bytes[at + shape.row_offsets_at], shape.segments * 4);
    rows.push_back(row);
  }
  return rows;
}

std::vector<Row> quantized(WeightType type, const LeafRange& leaves, const std::vector<float>& x,
                           decltype(&quantize_rows) quantize = &quantize_rows) {
  const QuantizedShape shape = quantized_shape(type, leaves);
  const int64_t cols = leaves.k_end() - leaves.k_begin(), count = std::ssize(x) / cols;
  std::vector<std::byte> bytes(count * shape.row_bytes, std::byte{0x55});
  quantize(type, leaves, Matrix<const float>(x.data(), count, cols), bytes.data());
  return rows_of(bytes, shape);
}

constexpr WeightType kTypes[] = {WeightType::kInt8, WeightType::kInt4, WeightType::kMxfp4};

TEST(QuantizeRows, EqualsItsDefinitionAtAnySizeOnEveryIsa) {
  for (const WeightType type : kTypes) {
    for (const int64_t k : {1, 7, 8, 9, 31, 32, 33, 64, 100, 300}) {
      for (const int num_leaves : {1, 16}) {
        const std::vector<float> x = normal_floats(3 * k, 1);
        const auto want = quantized(type, whole(k, num_leaves), x, &reference::quantize_rows);
        on_every_isa([&] {
          EXPECT_EQ(quantized(type, whole(k, num_leaves), x), want)
              << k << " inputs, " << num_leaves << " leaves";
        });
      }
    }
  }
}

TEST(QuantizeRows, ScalesATokenByItsLargestInput) {
  const std::vector<Row> rows = quantized(WeightType::kInt8, whole(4, 1), {254, -254, 3, 5});

  ASSERT_EQ(rows[0].scales, std::vector{2.0f});
  // 3 / 2 and 5 / 2 are ties: to even.
  EXPECT_EQ(rows[0].codes, (std::vector<int8_t>{127, -127, 2, 2, 0, 0, 0, 0}));
  EXPECT_EQ(rows[0].offsets, std::vector{-128 * 4});
}

TEST(QuantizeRows, ScalesEveryLeafByItself) {
  const std::vector<Row> rows =
      quantized(WeightType::kInt8, whole(4, 2), {127, 1, 0.5f * 127, 0.5f});

  EXPECT_EQ(rows[0].scales, (std::vector{1.0f, 0.5f}));
  EXPECT_EQ(rows[0].codes, (std::vector<int8_t>{127, 1, 0, 0, 0, 0, 0, 0,  //
                                                127, 1, 0, 0, 0, 0, 0, 0}));
}

TEST(QuantizeRows, CutsGroupsAtMultiplesOf32AndAtLeafEnds) {
  // 80 inputs, two leaves of 40: [0, 32), [32, 40), [40, 64), [64, 80).
  const QuantizedShape both = quantized_shape(WeightType::kInt4, whole(80, 2));
  EXPECT_EQ(both.segments, 4);
  EXPECT_EQ(both.padded_cols, 80);

  LeafRange second = whole(80, 2);
  second.first_leaf = second.num_leaves = 1;
  EXPECT_EQ(quantized_shape(WeightType::kInt4, second).segments, 2);
}

TEST(QuantizeRows, RejectsLeavesWhoseSumsCouldOverflow) {
  EXPECT_THROW(quantized_shape(WeightType::kInt8, whole((1 << 17) + 1, 1)), std::logic_error);
}

// The value of weight k of row 0 of a matrix of one row: that of y for the unit vector k.
std::vector<float> weights_of(const PackedMatrix& w) {
  std::vector<float> values;
  for (int64_t k = 0; k < w.cols; ++k) {
    std::vector<float> x(w.cols, 0.0f);
    x[k] = 127;
    InputBuffer buffer;
    float y;
    linear_quantized(w, buffer.prepare(w, Matrix<const float>(x.data(), 1, w.cols), {}),
                     Matrix<float>(&y, 1, 1), Rounding::kNone);
    values.push_back(y / 127);
  }
  return values;
}

std::vector<float> round_trip(WeightType type, const std::vector<float>& row) {
  const auto cols = std::ssize(row);
  PackedWeights packed(type, 1, whole(cols, 1));
  pack_rows(packed.matrix, 0, 1,
            {.type = SourceType::kF32,
             .data = reinterpret_cast<const std::byte*>(row.data()),
             .row_stride = cols});
  return weights_of(packed.matrix);
}

TEST(QuantizeWeights, Int4KeepsTheExtremeAndUsesTheLargerHalfOfItsRange) {
  // -2 becomes code 0 (-8), so the step is 1/4; +2 is beyond code 15 (+7).
  EXPECT_EQ(round_trip(WeightType::kInt4, {-2, 2, 0.25f, 0.3f, 0.4f, 0, 1}),
            (std::vector{-2.0f, 1.75f, 0.25f, 0.25f, 0.5f, 0.0f, 1.0f}));
}

TEST(QuantizeWeights, Mxfp4FollowsTheOcpFormat) {
  // Largest 7: exponent floor(log2 7) - 2 = 0, and 7 saturates at 6. Ties to the even code.
  EXPECT_EQ(round_trip(WeightType::kMxfp4, {7, 5, 3.5f, 2.5f, -1.75f, 0.25f, 0.75f, -0.3f}),
            (std::vector{6.0f, 4.0f, 4.0f, 2.0f, -2.0f, 0.0f, 1.0f, -0.5f}));
  // A group has its own power of two.
  std::vector<float> row(40, 0.0f);
  row[0] = 4;
  row[39] = 0x1.8p-20f;
  EXPECT_EQ(round_trip(WeightType::kMxfp4, row), row);
}

TEST(QuantizeWeights, Int8TakesCodesAndScalesOfACheckpoint) {
  const std::vector<int8_t> codes{-128, -1, 0, 1, 127, 5};  // rows [-128 -1 0] and [1 127 5]
  const std::vector<float> scales{100, 0.5f, 2};            // of rows 0 to 2 of the whole tensor
  PackedWeights packed(WeightType::kInt8, 2, whole(3, 1));
  pack_rows(packed.matrix, 0, 2,
            {.type = SourceType::kInt8,
             .data = reinterpret_cast<const std::byte*>(codes.data()),
             .row_stride = 3,
             .scales = scales.data(),
             .first_row = 1});

  std::vector<float> y(2);
  const std::vector<float> x{127, 0, 127};
  InputBuffer buffer;
  linear_quantized(packed.matrix,
                   buffer.prepare(packed.matrix, Matrix<const float>(x.data(), 1, 3), {}),
                   Matrix<float>(y.data(), 1, 2), Rounding::kNone);

  EXPECT_EQ(y, (std::vector{-64.0f * 127, 12.0f * 127}));
}

TEST(QuantizeWeights, Int8CodesOfACheckpointMayBeWidened) {
  const std::vector<int8_t> codes{-128, -1, 0, 1, 127, 5};
  const std::vector<float> scales{100, 0.5f, 2};
  PackedWeights packed(WeightType::kF32, 2, whole(3, 1));
  pack_rows(packed.matrix, 0, 2,
            {.type = SourceType::kInt8,
             .data = reinterpret_cast<const std::byte*>(codes.data()),
             .row_stride = 3,
             .scales = scales.data(),
             .first_row = 1});

  const auto* tile = reinterpret_cast<const float*>(packed.data.data());  // [3][16]
  for (int k = 0; k < 3; ++k) {
    EXPECT_EQ(tile[k * kTileRows], static_cast<float>(codes[k]) * 0.5f);
    EXPECT_EQ(tile[k * kTileRows + 1], static_cast<float>(codes[3 + k]) * 2.0f);
  }
}

TEST(QuantizeWeights, AreTheSameFromEveryTypeThatHoldsTheirValues) {
  for (const WeightType type : kTypes) {
    const TestTensor fp8(SourceType::kFp8, 33, 200, 3);
    TestTensor f32(SourceType::kF32, 33, 200, 3);
    std::memcpy(f32.data.data(), fp8.values.data(), f32.data.size());
    EXPECT_EQ(fp8.pack(type, whole(200, 16)).data, f32.pack(type, whole(200, 16)).data);

    const TestTensor bf16(SourceType::kBf16, 33, 200, 4);
    std::memcpy(f32.data.data(), bf16.values.data(), f32.data.size());
    EXPECT_EQ(bf16.pack(type, whole(200, 1)).data, f32.pack(type, whole(200, 1)).data);
  }
}

TEST(QuantizeWeights, MayArriveInPieces) {
  for (const WeightType type : kTypes) {
    const TestTensor tensor(SourceType::kBf16, 40, 70, 5);
    PackedWeights pieces(type, 40, whole(70, 1));
    for (const auto& [row, count] : {std::pair{0, 5}, {5, 30}, {35, 5}})
      pack_rows(pieces.matrix, row, count, tensor.from_row(row));
    EXPECT_EQ(pieces.data, tensor.pack(type, whole(70, 1)).data);
  }
}

}  // namespace
}  // namespace troupe::layers
