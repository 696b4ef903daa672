// Products over inputs prepared as bf16 (layers/linear_dot.h).
#include "layers/linear_dot.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "every_isa.h"
#include "test_weights.h"

namespace troupe::layers {
namespace {

using SourceType = SourceRows::Type;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

LeafRange whole(int64_t k, int leaves) {
  return {.k_total = k, .total_leaves = leaves, .first_leaf = 0, .num_leaves = leaves};
}

// On the instruction set that has these products; skipped where the machine lacks it.
class LinearDot : public testing::TestWithParam<SourceType> {
 protected:
  void SetUp() override {
    if (supported_isas().back() != Isa::kAvx512Bf16) GTEST_SKIP() << "no AVX512_BF16 here";
    before_ = active_isa();
    force_isa(Isa::kAvx512Bf16);
  }
  void TearDown() override {
    if (!IsSkipped()) force_isa(before_);
  }

  static PackedWeights weights(int64_t rows, const LeafRange& leaves, uint32_t seed) {
    return TestTensor(GetParam(), rows, leaves.k_total, seed).pack(same_type(GetParam()), leaves);
  }

  PreparedRows prepare(const PackedWeights& w, Matrix<const float> x) {
    const PreparedRows rows = inputs_.prepare(w.matrix, x, Rounding::kBf16);
    EXPECT_EQ(rows.form, InputForm::kBf16);
    return rows;
  }

  std::vector<float> product(const PackedWeights& w, Matrix<const float> x,
                             Rounding rounding = Rounding::kNone) {
    std::vector<float> y(x.rows * w.matrix.rows);
    linear(w.matrix, prepare(w, x), Matrix(y.data(), x.rows, w.matrix.rows), rounding);
    return y;
  }

 private:
  Isa before_{};
  InputBuffer inputs_;
};

INSTANTIATE_TEST_SUITE_P(, LinearDot, testing::Values(SourceType::kBf16, SourceType::kFp8),
                         [](const auto& type) {
                           return std::string(type.param == SourceType::kFp8 ? "Fp8" : "Bf16");
                         });

TEST_P(LinearDot, EqualsItsDefinitionBitForBitAtAnySize) {
  constexpr int64_t kMaxTokens = 70;
  for (const int64_t k : {1, 2, 3, 4, 5, 17, 64, 127, 128, 129, 264, 300}) {
    for (const int64_t n : {1, 17, 40, 150}) {
      const PackedWeights w = weights(n, whole(k, k % 2 ? 16 : 1), 1);
      const std::vector<float> x = normal_floats(kMaxTokens * (k + 1), 2);
      const PreparedRows rows = prepare(w, Matrix<const float>(x.data() + 1, kMaxTokens, k));
      std::vector<float> want(kMaxTokens * n);
      reference::linear(w.matrix, rows, Matrix(want.data(), kMaxTokens, n), Rounding::kNone);
      for (int64_t tokens = 0; tokens <= kMaxTokens; tokens += k == 129 ? 1 : 1 + tokens / 3) {
        std::vector<float> y(tokens * (n + 1), -5.0f);
        const Matrix<float> got(y.data(), tokens, n, n + 1);

        linear(w.matrix, rows.rows_from(0, tokens), got, Rounding::kNone);

        expect_same_bits(got, Matrix<const float>(want.data(), tokens, n));
        for (int64_t t = 0; t < tokens; ++t) ASSERT_EQ(got.row(t)[n], -5.0f);
      }
    }
  }
}

TEST_P(LinearDot, IsCloseToTheExactProductOfRoundedInputs) {
  constexpr int64_t kInputs = 1000, kOutputs = 50, kTokens = 9;
  const TestTensor w(GetParam(), kOutputs, kInputs, 5);
  const std::vector<float> x = normal_floats(kTokens * kInputs, 6);
  for (const int num_leaves : {1, 16}) {
    const PackedWeights packed = w.pack(same_type(GetParam()), whole(kInputs, num_leaves));
    const std::vector<float> y = product(packed, Matrix<const float>(x.data(), kTokens, kInputs));
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t n = 0; n < kOutputs; ++n) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < kInputs; ++k) {
          const double term =
              static_cast<double>(w.values[n * kInputs + k]) * round_to_bf16(x[t * kInputs + k]);
          sum += term;
          magnitude += std::fabs(term);
        }
        // Each step, part and level of the tree rounds by at most 2^-24 of a partial sum; the
        // values of an fp8 tensor are rounded themselves.
        EXPECT_NEAR(y[t * kOutputs + n], sum, (kInputs + 16) * 0x1p-24 * magnitude);
      }
    }
  }
}

TEST_P(LinearDot, GivesARowTheSameBitsAloneAndAnywhereInABatch) {
  constexpr int64_t kInputs = 300, kOutputs = 150, kTokens = 29;
  const PackedWeights w = weights(kOutputs, whole(kInputs, 16), 7);
  const std::vector<float> x = normal_floats(kInputs, 8);
  const std::vector<float> alone = product(w, Matrix<const float>(x.data(), 1, kInputs));
  for (int64_t t = 0; t < kTokens; ++t) {
    std::vector<float> batch = normal_floats(kTokens * kInputs, 9);
    std::copy(x.begin(), x.end(), &batch[t * kInputs]);

    const std::vector<float> y = product(w, Matrix<const float>(batch.data(), kTokens, kInputs));

    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &y[t * kOutputs])) << "row " << t;
  }
}

TEST_P(LinearDot, SumsTheShardsOfRanksToTheBitsOfTheWhole) {
  constexpr int64_t kOutputs = 37, kTokens = 7;
  for (const int64_t k : {1, 15, 40, 127, 264, 300, 1000}) {
    const TestTensor w(GetParam(), kOutputs, k, 10);
    const std::vector<float> x = normal_floats(kTokens * k, 11);
    const std::vector<float> want = product(w.pack(same_type(GetParam()), whole(k, kTpLeaves)),
                                            Matrix<const float>(x.data(), kTokens, k));
    for (const int tp : {2, 4, 8, 16}) {
      std::vector<std::vector<float>> parts;
      for (int rank = 0; rank < tp; ++rank) {
        const LeafRange leaves{.k_total = k,
                               .total_leaves = kTpLeaves,
                               .first_leaf = rank * kTpLeaves / tp,
                               .num_leaves = kTpLeaves / tp};
        const PackedWeights shard = w.pack(same_type(GetParam()), leaves);
        parts.push_back(product(shard, Matrix<const float>(x.data() + leaves.k_begin(), kTokens,
                                                           shard.matrix.cols, k)));
      }
      for (size_t i = 0; i < want.size(); ++i) {
        std::vector<float> leaves;
        for (const std::vector<float>& part : parts) leaves.push_back(part[i]);
        ASSERT_TRUE(same_bits(reference::sum_of_pairs(leaves), want[i])) << k << " over " << tp;
      }
    }
  }
}

TEST_P(LinearDot, RoundsOnceAtTheEnd) {
  const PackedWeights w = weights(33, whole(64, 16), 12);
  const std::vector<float> x = normal_floats(5 * 64, 13);
  const Matrix<const float> rows(x.data(), 5, 64);

  const std::vector<float> exact = product(w, rows);
  const std::vector<float> rounded = product(w, rows, Rounding::kBf16);

  for (size_t i = 0; i < exact.size(); ++i) EXPECT_EQ(rounded[i], round_to_bf16(exact[i]));
}

TEST_P(LinearDot, KeepsNanAndInfinityInTheirRowAndLeaf) {
  // Leaves of 5 inputs: the last of each is paired with zeros, not with the next leaf's first.
  const LeafRange leaves{.k_total = 80, .total_leaves = 16, .first_leaf = 0, .num_leaves = 8};
  const PackedWeights w = weights(100, leaves, 14);
  for (const float bad : {kNan, kInf}) {
    std::vector<float> x = normal_floats(8 * 41, 15);
    for (int64_t t = 0; t < 8; ++t) x[t * 41 + 40] = bad;  // beyond the row
    x[5 * 41 + 7] = bad;

    const std::vector<float> y = product(w, Matrix<const float>(x.data(), 8, 40, 41));

    for (int64_t i = 0; i < 8 * 100; ++i) EXPECT_EQ(!std::isfinite(y[i]), i / 100 == 5) << i;
  }
}

TEST_P(LinearDot, OfNoInputsIsZero) {
  const PackedWeights w(same_type(GetParam()), 20, whole(0, 16));

  EXPECT_EQ(product(w, Matrix<const float>(nullptr, 2, 0)), std::vector<float>(2 * 20, 0.0f));
}

TEST_P(LinearDot, OfARangeOfTilesIsThoseColumns) {
  const PackedWeights w = weights(100, whole(300, 16), 17);
  const std::vector<float> x = normal_floats(7 * 300, 18);
  const Matrix<const float> rows(x.data(), 7, 300);
  const std::vector<float> want = product(w, rows);
  std::vector<float> got(7 * 100, kNan);

  for (const auto& [first, count] : {std::pair{0, 3}, {3, 1}, {4, 3}}) {
    const PackedMatrix tiles = tile_range(w.matrix, first, count);
    linear(tiles, prepare(w, rows), {got.data() + first * kTileRows, 7, tiles.rows, 100},
           Rounding::kNone);
  }

  EXPECT_EQ(got, want);
}

TEST_P(LinearDot, LeavesFloat32ToTheOtherProducts) {
  const PackedWeights w = weights(20, whole(30, 1), 19);
  EXPECT_EQ(input_form(w.matrix, Rounding::kNone), InputForm::kF32);
  EXPECT_EQ(input_form(w.matrix, Rounding::kBf16), InputForm::kBf16);
  force_isa(Isa::kAvx512);
  EXPECT_EQ(input_form(w.matrix, Rounding::kBf16), InputForm::kF32);
}

// Row n is the one fp8 code n; the input is 1.
TEST(LinearDotFp8, ReadsEveryCode) {
  if (supported_isas().back() != Isa::kAvx512Bf16) GTEST_SKIP() << "no AVX512_BF16 here";
  const Isa before = active_isa();
  force_isa(Isa::kAvx512Bf16);
  std::vector<uint8_t> codes(256);
  for (int code = 0; code < 256; ++code) codes[code] = static_cast<uint8_t>(code);
  const std::vector<float> scales(2, 0.75f), x(7, 1.0f);
  PackedWeights w(WeightType::kFp8, 256, whole(1, 1));
  pack_rows(w.matrix, 0, 256,
            {.type = SourceType::kFp8,
             .data = reinterpret_cast<const std::byte*>(codes.data()),
             .row_stride = 1,
             .scales = scales.data(),
             .scale_stride = 1});
  InputBuffer inputs;
  std::vector<float> y(7 * 256);

  linear(w.matrix, inputs.prepare(w.matrix, Matrix<const float>(x.data(), 7, 1), Rounding::kBf16),
         Matrix(y.data(), 7, 256), Rounding::kNone);

  for (int i = 0; i < 7 * 256; ++i) {
    const float value = fp8_e4m3_to_float(static_cast<uint8_t>(i % 256));
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(y[i]));
    else
      EXPECT_EQ(y[i], value * 0.75f) << i % 256;
  }
  force_isa(before);
}

TEST(LinearDotBf16, FlushesSubnormalsAndAddsTheOddInputFirst) {
  const Bf16 one = to_bf16(1.0f), tiny = to_bf16(0x1p-127f), zero{0}, big = to_bf16(0x1p24f);
  EXPECT_EQ(reference::dot_pair(0, tiny, zero, one, zero), 0.0f);           // an input
  EXPECT_EQ(reference::dot_pair(0x1p-127f, zero, zero, zero, zero), 0.0f);  // the sum
  // (1 + 2^24) - 2^24 loses the 1, (1 - 2^24) + 2^24 does not.
  const Bf16 minus_big = to_bf16(-0x1p24f);
  EXPECT_EQ(reference::dot_pair(1, minus_big, big, one, one), 0.0f);
  EXPECT_EQ(reference::dot_pair(1, big, minus_big, one, one), 1.0f);
}

// Any bit pattern as weight and input, the instruction itself against its definition.
TEST(LinearDotBf16, IsTheInstructionForAnyBits) {
  if (supported_isas().back() != Isa::kAvx512Bf16) GTEST_SKIP() << "no AVX512_BF16 here";
  const Isa before = active_isa();
  force_isa(Isa::kAvx512Bf16);
  constexpr int64_t kRows = 64, kInputs = 4, kTokens = 500;
  std::mt19937 random(20);
  PackedWeights w(WeightType::kBf16, kRows, whole(kInputs, 1));
  std::vector<Bf16> stored(kRows * kInputs);
  for (Bf16& element : stored) element.bits = static_cast<uint16_t>(random());
  pack_rows(w.matrix, 0, kRows,
            {.type = SourceType::kBf16,
             .data = reinterpret_cast<const std::byte*>(stored.data()),
             .row_stride = kInputs});
  std::vector<float> x(kTokens * kInputs);
  for (float& value : x) value = to_float(Bf16{static_cast<uint16_t>(random())});
  InputBuffer inputs;
  const PreparedRows rows =
      inputs.prepare(w.matrix, Matrix<const float>(x.data(), kTokens, kInputs), Rounding::kBf16);
  std::vector<float> got(kTokens * kRows), want(kTokens * kRows);

  linear(w.matrix, rows, Matrix(got.data(), kTokens, kRows), Rounding::kNone);
  reference::linear_dot(w.matrix, rows, Matrix(want.data(), kTokens, kRows), Rounding::kNone);

  expect_same_bits(Matrix<const float>(got.data(), kTokens, kRows),
                   Matrix<const float>(want.data(), kTokens, kRows));
  force_isa(before);
}

}  // namespace
}  // namespace troupe::layers
