#include "layers/linear_quantized.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "every_isa.h"
#include "layers/linear.h"
#include "layers/quantize.h"
#include "test_weights.h"

namespace troupe::layers {
namespace {

using SourceType = SourceRows::Type;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr WeightType kQuantizedTypes[] = {WeightType::kInt8, WeightType::kInt4, WeightType::kMxfp4};

LeafRange leaves_of(int64_t k, int total, int first, int count) {
  return {.k_total = k, .total_leaves = total, .first_leaf = first, .num_leaves = count};
}
LeafRange whole(int64_t k, int leaves) { return leaves_of(k, leaves, 0, leaves); }

Matrix<const float> view(const std::vector<float>& values, int64_t cols) {
  return {values.data(), std::ssize(values) / cols, cols};
}

std::vector<float> product(const PackedMatrix& w, Matrix<const float> x,
                           Rounding rounding = Rounding::kNone) {
  InputBuffer buffer;
  std::vector<float> y(x.rows * w.rows);
  linear(w, buffer.prepare(w, x, Rounding::kNone), Matrix(y.data(), x.rows, w.rows), rounding);
  return y;
}

class LinearQuantized : public testing::TestWithParam<WeightType> {
 protected:
  PackedWeights pack(const TestTensor& tensor, const LeafRange& leaves) const {
    return tensor.pack(GetParam(), leaves);
  }
};

std::string type_name(const testing::TestParamInfo<WeightType>& type) {
  return type.param == WeightType::kInt8   ? "Int8"
         : type.param == WeightType::kInt4 ? "Int4"
                                           : "Mxfp4";
}

INSTANTIATE_TEST_SUITE_P(Formats, LinearQuantized, testing::ValuesIn(kQuantizedTypes), type_name);

TEST_P(LinearQuantized, EqualsItsDefinitionBitForBitAtAnySizeOnEveryIsa) {
  for (const int64_t k : {1, 3, 8, 31, 32, 33, 64, 100, 129, 300}) {
    for (const int64_t n : {1, 15, 16, 17, 40}) {
      constexpr int64_t kMaxTokens = 70;
      const PackedWeights w = pack(TestTensor(SourceType::kF32, n, k, 1), whole(k, k % 2 ? 16 : 1));
      const std::vector<float> x = normal_floats(kMaxTokens * k, 2);
      InputBuffer buffer;
      const PreparedRows rows = buffer.prepare(w.matrix, view(x, k), Rounding::kNone);
      std::vector<float> want(kMaxTokens * n);
      reference::linear(w.matrix, rows, Matrix(want.data(), kMaxTokens, n), Rounding::kBf16);

      on_every_isa([&] {
        for (const int64_t tokens : {0, 1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 33, 70}) {
          std::vector<float> y(tokens * (n + 1), -5.0f);
          const Matrix<float> got(y.data(), tokens, n, n + 1);

          linear(w.matrix, rows.rows_from(0, tokens), got, Rounding::kBf16);

          expect_same_bits(got, Matrix<const float>(want.data(), tokens, n));
          for (int64_t t = 0; t < tokens; ++t) ASSERT_EQ(got.row(t)[n], -5.0f);
        }
      });
    }
  }
}

TEST_P(LinearQuantized, GivesARowTheSameBitsForEveryNumberOfRows) {
  constexpr int64_t kCols = 200, kOutputs = 50;
  const PackedWeights w = pack(TestTensor(SourceType::kBf16, kOutputs, kCols, 3), whole(kCols, 16));
  const std::vector<float> x = normal_floats(71 * kCols, 4);
  const std::vector<float> all = product(w.matrix, view(x, kCols));

  for (int64_t tokens = 0; tokens <= 70; ++tokens) {
    const auto rows = view(x, kCols).rows_from(1, tokens);
    expect_same_bits(view(product(w.matrix, rows), kOutputs),
                     view(all, kOutputs).rows_from(1, tokens));
  }
}

TEST_P(LinearQuantized, GivesPartsOfTheTilesTheSameBits) {
  const PackedWeights w = pack(TestTensor(SourceType::kBf16, 100, 96, 5), whole(96, 1));
  const std::vector<float> x = normal_floats(9 * 96, 6);
  const std::vector<float> all = product(w.matrix, view(x, 96));

  for (int64_t tile = 0; tile < w.matrix.tiles(); ++tile) {
    const PackedMatrix part = tile_range(w.matrix, tile, 1);
    const Matrix<const float> columns(all.data() + tile * kTileRows, 9, part.rows, 100);
    expect_same_bits(view(product(part, view(x, 96)), part.rows), columns);
  }
}

// 180 inputs a leaf, as gpt-oss-20b has: leaves end inside groups of 32.
TEST_P(LinearQuantized, SumsToTheSameBitsHoweverLeavesAreSpreadOverRanks) {
  constexpr int64_t kCols = 2880, kOutputs = 20, kTokens = 5;
  const TestTensor tensor(SourceType::kBf16, kOutputs, kCols, 7);
  const std::vector<float> x = normal_floats(kTokens * kCols, 8);
  const std::vector<float> want = product(pack(tensor, whole(kCols, 16)).matrix, view(x, kCols));

  for (const int ranks : {2, 4, 8, 16}) {
    std::vector<std::vector<float>> parts;
    for (int rank = 0; rank < ranks; ++rank) {
      const LeafRange leaves = leaves_of(kCols, 16, rank * 16 / ranks, 16 / ranks);
      const Matrix<const float> columns(x.data() + leaves.k_begin(), kTokens,
                                        leaves.k_end() - leaves.k_begin(), kCols);
      parts.push_back(product(pack(tensor, leaves).matrix, columns));
    }
    for (; parts.size() > 1; parts.resize(parts.size() / 2))
      for (size_t i = 0; i < parts.size() / 2; ++i)
        for (size_t j = 0; j < want.size(); ++j)
          parts[i][j] = parts[2 * i][j] + parts[2 * i + 1][j];
    expect_same_bits(view(parts[0], kOutputs), view(want, kOutputs));
  }
}

// Root mean square error over that of the result, for independent normal weights and inputs.
double relative_error(WeightType type, int num_leaves) {
  constexpr int64_t kCols = 1000, kOutputs = 200, kTokens = 20;
  const TestTensor tensor(SourceType::kF32, kOutputs, kCols, 9);
  const std::vector<float> x = normal_floats(kTokens * kCols, 10);
  const std::vector<float> y =
      product(tensor.pack(type, whole(kCols, num_leaves)).matrix, view(x, kCols));
  double error = 0, power = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      const double exact =
          std::inner_product(&x[t * kCols], &x[t * kCols] + kCols, &tensor.values[n * kCols], 0.0);
      error += (y[t * kOutputs + n] - exact) * (y[t * kOutputs + n] - exact);
      power += exact * exact;
    }
  }
  return std::sqrt(error / power);
}

// A uniform rounding error has a standard deviation of step / sqrt(12); a normal sample of 1000
// reaches about 3.3 and one of 32 about 2.1 deviations, so steps are 3.3 / 127 and 2.1 / 8. For
// e2m1 the error is of the order of 0.12. Bounds are a quarter above.
TEST(LinearQuantizedError, IsThatOfTheRoundings) {
  for (const int num_leaves : {1, 16}) {
    EXPECT_LT(relative_error(WeightType::kInt8, num_leaves), 0.0135);
    EXPECT_LT(relative_error(WeightType::kInt4, num_leaves), 0.095);
    EXPECT_LT(relative_error(WeightType::kMxfp4, num_leaves), 0.15);
  }
  EXPECT_GT(relative_error(WeightType::kInt8, 1), 0.003);
}

TEST_P(LinearQuantized, IsExactForWeightsAndInputsThatAreCodes) {
  // Weights -6 .. 6 with a 6 in each group; inputs 0 or +-127 with a 127 in each.
  constexpr int64_t kCols = 64;
  constexpr float kCodes[] = {6, -4, 0.5f, 0, 1.5f, -3, 2, -1};
  const bool is_int4 = GetParam() == WeightType::kInt4, is_int8 = GetParam() == WeightType::kInt8;
  TestTensor tensor(SourceType::kF32, 16, kCols, 0);
  for (int64_t i = 0; i < 16 * kCols; ++i)
    tensor.values[i] = is_int8   ? static_cast<float>(i % 255 - 127)
                       : is_int4 ? static_cast<float>((i * 5) % 16 - 8)
                                 : kCodes[(i + i / kCols) % 8];
  if (is_int8)
    for (int64_t n = 0; n < 16; ++n) tensor.values[n * kCols] = 127;
  std::memcpy(tensor.data.data(), tensor.values.data(), tensor.data.size());
  std::vector<float> x(kCols);
  for (int64_t k = 0; k < kCols; ++k) x[k] = static_cast<float>((k % 3 - 1) * 127);

  const std::vector<float> y = product(pack(tensor, whole(kCols, 1)).matrix, view(x, kCols));

  for (int64_t n = 0; n < 16; ++n)
    EXPECT_EQ(y[n], std::inner_product(x.begin(), x.end(), &tensor.values[n * kCols], 0.0f)) << n;
}

TEST_P(LinearQuantized, GivesNanForRowsAndWeightsThatAreNoFiniteNumbers) {
  constexpr int64_t kCols = 70, kOutputs = 18;
  for (const float bad : {kNan, kInf, -kInf}) {
    TestTensor tensor(SourceType::kF32, kOutputs, kCols, 11);
    tensor.values[3 * kCols + 69] = bad;
    std::memcpy(tensor.data.data(), tensor.values.data(), tensor.data.size());
    std::vector<float> x = normal_floats(3 * kCols, 12);
    x[kCols + 40] = bad;
    const PackedWeights w = pack(tensor, whole(kCols, 16));
    on_every_isa([&] {
      const std::vector<float> y = product(w.matrix, view(x, kCols));
      for (int64_t t = 0; t < 3; ++t)
        for (int64_t n = 0; n < kOutputs; ++n)
          ASSERT_EQ(std::isnan(y[t * kOutputs + n]), t == 1 || n == 3) << t << " " << n;
    });
  }
}

TEST_P(LinearQuantized, TakesZerosAndTinyNumbersForZero) {
  TestTensor tensor(SourceType::kF32, 16, 64, 13);
  const PackedWeights w = pack(tensor, whole(64, 1));
  std::vector<float> x(2 * 64, 0.0f);
  x[64] = 0x1p-140f;
  for (const float y : product(w.matrix, view(x, 64))) EXPECT_EQ(y, 0.0f);

  for (float& value : tensor.values) value *= 0x1p-130f;
  std::memcpy(tensor.data.data(), tensor.values.data(), tensor.data.size());
  const std::vector<float> ones(64, 1.0f);
  for (const float y : product(pack(tensor, whole(64, 1)).matrix, view(ones, 64)))
    EXPECT_EQ(y, 0.0f);
}

// The largest sums there are: 2^17 products of 255 and 127 wrap around, their offsets too.
TEST(LinearInt8, IsExactWhereSumsOfUnsignedCodesOverflow) {
  constexpr int64_t kCols = int64_t{1} << 17;
  TestTensor tensor(SourceType::kF32, 1, kCols, 0);
  std::fill(tensor.values.begin(), tensor.values.end(), 127.0f);
  std::memcpy(tensor.data.data(), tensor.values.data(), tensor.data.size());
  const PackedWeights w = tensor.pack(WeightType::kInt8, whole(kCols, 1));
  const std::vector<float> x(kCols, -127.0f);

  on_every_isa([&] { EXPECT_EQ(product(w.matrix, view(x, kCols))[0], -127.0f * 127 * kCols); });
}

}  // namespace
}  // namespace troupe::layers
