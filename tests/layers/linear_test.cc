#include "layers/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "base/bf16.h"
#include "every_isa.h"
#include "layers/team.h"
#include "test_weights.h"

namespace troupe::layers {
namespace {

using SourceType = SourceRows::Type;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

LeafRange whole(int64_t k, int leaves) {
  return {.k_total = k, .total_leaves = leaves, .first_leaf = 0, .num_leaves = leaves};
}

std::vector<float> product(const PackedMatrix& w, Matrix<const float> x,
                           Rounding rounding = Rounding::kNone) {
  std::vector<float> y(x.rows * w.rows);
  linear(w, x, Matrix(y.data(), x.rows, w.rows), rounding);
  return y;
}

// The sum of leaves [first, last) of one output, by halves: 16 leaves are a full tree.
float tree(const float* w, const float* x, const LeafRange& leaves, int first, int last) {
  if (last - first > 1) {
    const int middle = (first + last) / 2;
    return tree(w, x, leaves, first, middle) + tree(w, x, leaves, middle, last);
  }
  float sum = 0;
  for (int64_t k = leaves.leaf_begin(first); k < leaves.leaf_begin(last); ++k)
    sum = std::fma(w[k], x[k], sum);
  return sum;
}

std::vector<float> tree_product(const TestTensor& w, Matrix<const float> x, int num_leaves) {
  const LeafRange leaves = whole(w.cols, num_leaves);
  std::vector<float> y;
  for (int64_t t = 0; t < x.rows; ++t)
    for (int64_t n = 0; n < w.rows; ++n)
      y.push_back(tree(&w.values[n * w.cols], x.row(t), leaves, 0, num_leaves));
  return y;
}

// Rows of x that begin at any alignment.
struct Rows {
  std::vector<float> values;
  Matrix<const float> view;

  Rows(int64_t rows, int64_t cols, uint32_t seed)
      : values(normal_floats(rows * (cols + 1) + 1, seed)),
        view(values.data() + 1, rows, cols, cols + 1) {}
};

class LinearOfType : public testing::TestWithParam<SourceType> {};

std::string type_name(const testing::TestParamInfo<SourceType>& type) {
  constexpr const char* kNames[] = {"F32", "Bf16", "Fp8"};
  return kNames[static_cast<int>(type.param)];
}

INSTANTIATE_TEST_SUITE_P(Linear, LinearOfType, testing::ValuesIn(kSourceTypes), type_name);

TEST_P(LinearOfType, EqualsItsDefinitionBitForBitAtAnySize) {
  for (const int64_t k : {1, 2, 3, 15, 16, 17, 40, 64, 72, 127, 128, 129, 264, 300}) {
    for (const int64_t n : {1, 15, 16, 17, 40, 100}) {
      constexpr int64_t kMaxTokens = 70;
      const PackedWeights w =
          TestTensor(GetParam(), n, k, 1).pack(same_type(GetParam()), whole(k, k % 2 ? 16 : 1));
      const Rows x(kMaxTokens, k, 2);
      std::vector<float> want(kMaxTokens * n);
      reference::linear(w.matrix, x.view, Matrix(want.data(), kMaxTokens, n), Rounding::kNone);

      on_every_isa([&] {
        for (const int64_t tokens : {0, 1, 2, 3, 5, 7, 13, 16, 33, 70}) {
          std::vector<float> y(tokens * (n + 1), -5.0f);
          const Matrix<float> got(y.data(), tokens, n, n + 1);

          linear(w.matrix, x.view.rows_from(0, tokens), got, Rounding::kNone);

          expect_same_bits(got, Matrix<const float>(want.data(), tokens, n));
          for (int64_t t = 0; t < tokens; ++t) ASSERT_EQ(got.row(t)[n], -5.0f);
        }
      });
    }
  }
}

TEST_P(LinearOfType, IsAChainPerLeafAndATreeOfLeaves) {
  for (const int64_t k : {1, 17, 130, 300}) {
    for (const int num_leaves : {1, 2, 16}) {
      const TestTensor w(GetParam(), 20, k, 3);
      const Rows x(3, k, 4);
      const PackedWeights packed = w.pack(same_type(GetParam()), whole(k, num_leaves));
      std::vector<float> by_definition(3 * 20);
      reference::linear(packed.matrix, x.view, Matrix(by_definition.data(), 3, 20),
                        Rounding::kNone);

      const std::vector<float> want = tree_product(w, x.view, num_leaves);

      EXPECT_EQ(by_definition, want) << k << " inputs, " << num_leaves << " leaves";
      on_every_isa([&] { EXPECT_EQ(product(packed.matrix, x.view), want); });
    }
  }
}

TEST_P(LinearOfType, HasTheSameBitsForAnyNumberOfThreads) {
  const PackedWeights w =
      TestTensor(GetParam(), 1000, 300, 7).pack(same_type(GetParam()), whole(300, 16));
  for (const int64_t tokens : {1, 2, 9}) {
    const Rows x(tokens, 300, 8);
    const std::vector<float> want = product(w.matrix, x.view, Rounding::kBf16);
    for (const int threads : {2, 3, 5}) {
      Team team({.threads = threads});
      const UseTeam use(team);
      EXPECT_EQ(product(w.matrix, x.view, Rounding::kBf16), want) << threads << " threads";
    }
  }
}

TEST_P(LinearOfType, ComputesAGroupOfUnequalProductsAsEachAlone) {
  const std::pair<int64_t, int64_t> sizes[] = {{1000, 0}, {17, 40}, {300, 1}, {1000, 3}, {0, 2}};
  std::vector<PackedWeights> weights;
  std::vector<Rows> inputs;
  std::vector<std::vector<float>> outputs, want;
  for (const auto& [rows, tokens] : sizes) {
    weights.push_back(
        TestTensor(GetParam(), rows, 130, 9).pack(same_type(GetParam()), whole(130, 16)));
    inputs.emplace_back(tokens, 130, 10);
    outputs.emplace_back(tokens * rows);
    want.push_back(product(weights.back().matrix, inputs.back().view));
  }
  std::vector<LinearJob> jobs;
  for (size_t i = 0; i < std::size(sizes); ++i)
    jobs.push_back({&weights[i].matrix, inputs[i].view,
                    Matrix(outputs[i].data(), sizes[i].second, sizes[i].first)});

  for (const int threads : {1, 2, 4}) {
    Team team({.threads = threads});
    const UseTeam use(team);
    for (std::vector<float>& y : outputs) std::ranges::fill(y, -5.0f);

    grouped_linear(jobs, Rounding::kNone);

    EXPECT_EQ(outputs, want) << threads << " threads";
  }
}

TEST_P(LinearOfType, IsCloseToTheExactProduct) {
  constexpr int64_t kInputs = 1000, kOutputs = 50;
  const TestTensor w(GetParam(), kOutputs, kInputs, 5);
  const Rows x(9, kInputs, 6);
  for (const int num_leaves : {1, 16}) {
    const PackedWeights packed = w.pack(same_type(GetParam()), whole(kInputs, num_leaves));
    const std::vector<float> y = product(packed.matrix, x.view);
    for (int64_t t = 0; t < 9; ++t) {
      for (int64_t n = 0; n < kOutputs; ++n) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < kInputs; ++k) {
          const double term = static_cast<double>(w.values[n * kInputs + k]) * x.view.row(t)[k];
          sum += term;
          magnitude += std::fabs(term);
        }
        // Each step of a chain and of the tree rounds by at most 2^-24 of a partial sum.
        EXPECT_NEAR(y[t * kOutputs + n], sum, (kInputs + 4) * 0x1p-24 * magnitude);
      }
    }
  }
}

TEST_P(LinearOfType, GivesARowTheSameBitsAloneAndAnywhereInABatch) {
  constexpr int64_t kInputs = 300, kOutputs = 150, kTokens = 23;
  const PackedWeights w =
      TestTensor(GetParam(), kOutputs, kInputs, 7).pack(same_type(GetParam()), whole(kInputs, 16));
  const Rows x(1, kInputs, 8);
  std::vector<float> batch = normal_floats(kTokens * kInputs, 9);

  on_every_isa([&] {
    const std::vector<float> alone = product(w.matrix, x.view);
    for (int64_t t = 0; t < kTokens; ++t) {
      std::vector<float> with_row = batch;
      std::copy_n(x.view.row(0), kInputs, &with_row[t * kInputs]);

      const std::vector<float> y =
          product(w.matrix, Matrix<const float>(with_row.data(), kTokens, kInputs));

      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), &y[t * kOutputs])) << "row " << t;
    }
  });
}

// What the ranks of a tensor-parallel group compute, added as their all-reduce does it.
std::vector<float> product_of_ranks(const TestTensor& w, const Matrix<const float>& x, int tp) {
  std::vector<std::vector<float>> sums;
  for (int rank = 0; rank < tp; ++rank) {
    const LeafRange leaves{.k_total = w.cols,
                           .total_leaves = kTpLeaves,
                           .first_leaf = rank * kTpLeaves / tp,
                           .num_leaves = kTpLeaves / tp};
    const PackedWeights shard = w.pack(same_type(w.type), leaves);
    const Matrix<const float> inputs(x.data + leaves.k_begin(), x.rows, shard.matrix.cols,
                                     x.stride);
    sums.push_back(product(shard.matrix, inputs));
  }
  for (; sums.size() > 1; sums.resize(sums.size() / 2)) {
    for (size_t i = 0; i < sums.size() / 2; ++i) {
      std::vector<float> pair = sums[2 * i];
      for (size_t j = 0; j < pair.size(); ++j) pair[j] += sums[2 * i + 1][j];
      sums[i] = pair;
    }
  }
  return sums[0];
}

TEST_P(LinearOfType, SumsTheShardsOfRanksToTheBitsOfTheWhole) {
  for (const int64_t k : {1, 15, 16, 40, 127, 256, 264, 300, 1000}) {
    const TestTensor w(GetParam(), 37, k, 10);
    const Rows x(7, k, 11);
    on_every_isa([&] {
      const PackedWeights packed = w.pack(same_type(GetParam()), whole(k, kTpLeaves));
      const std::vector<float> want = product(packed.matrix, x.view);
      for (const int tp : {2, 4, 8, 16})
        EXPECT_EQ(product_of_ranks(w, x.view, tp), want) << k << " inputs over " << tp;
    });
  }
}

TEST_P(LinearOfType, RoundsOnceAtTheEnd) {
  const PackedWeights w =
      TestTensor(GetParam(), 33, 64, 12).pack(same_type(GetParam()), whole(64, 16));
  const Rows x(5, 64, 13);

  on_every_isa([&] {
    const std::vector<float> exact = product(w.matrix, x.view);
    const std::vector<float> rounded = product(w.matrix, x.view, Rounding::kBf16);
    for (size_t i = 0; i < exact.size(); ++i) EXPECT_EQ(rounded[i], round_to_bf16(exact[i]));
  });
}

TEST_P(LinearOfType, KeepsANanInItsRow) {
  const PackedWeights w =
      TestTensor(GetParam(), 100, 40, 14).pack(same_type(GetParam()), whole(40, 1));
  Rows x(8, 40, 15);
  x.values[1 + 5 * 41 + 7] = kNan;

  on_every_isa([&] {
    const std::vector<float> y = product(w.matrix, x.view);
    for (int64_t i = 0; i < 8 * 100; ++i) EXPECT_EQ(std::isnan(y[i]), i / 100 == 5);
  });
}

TEST_P(LinearOfType, OfNoInputsIsZero) {
  const PackedWeights w(same_type(GetParam()), 20, whole(0, 16));
  std::vector<float> y(2 * 20, kNan);

  on_every_isa([&] {
    linear(w.matrix, Matrix<const float>(nullptr, 2, 0), Matrix(y.data(), 2, 20), Rounding::kNone);
    EXPECT_EQ(y, std::vector<float>(2 * 20, 0.0f));
  });
}

// A matrix whose row n is the one fp8 code n.
PackedWeights all_fp8_codes(float scale) {
  std::vector<uint8_t> codes(256);
  for (int code = 0; code < 256; ++code) codes[code] = static_cast<uint8_t>(code);
  const std::vector<float> scales(2, scale);
  PackedWeights w(WeightType::kFp8, 256, whole(1, 1));
  pack_rows(w.matrix, 0, 256,
            {.type = SourceType::kFp8,
             .data = reinterpret_cast<const std::byte*>(codes.data()),
             .row_stride = 1,
             .scales = scales.data(),
             .scale_stride = 1});
  return w;
}

TEST(Linear, RoundsAnFp8CodeTimesItsScaleOnceWhateverTheScale) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const float scale : {1.0f, 1e-3f, 3.3e-5f, 0.0f, -0.7f, 255.99f, 256.0f, 1e5f, 1e30f, 3e38f,
                            1e-30f, 0x1p-126f, 1.7e-39f, 1e-44f, kInf, kNan}) {
    const PackedWeights w = all_fp8_codes(scale);
    const std::vector<float> ones(7, 1.0f);
    on_every_isa([&] {
      for (const int64_t tokens : {1, 7}) {
        const std::vector<float> y = product(w.matrix, Matrix<const float>(ones.data(), tokens, 1));
        for (int64_t i = 0; i < tokens * 256; ++i) {
          const float weight = fp8_e4m3_to_float(static_cast<uint8_t>(i % 256)) * scale;
          EXPECT_TRUE(same_bits(y[i], weight + 0.0f)) << "code " << i % 256 << " scale " << scale;
        }
      }
    });
  }
}

TEST(Linear, TakesEachFp8BlockByItsOwnScale) {
  // One 1.0 per input; scales 1, 10, 100: the product counts the inputs of each block.
  constexpr int64_t kInputs = 300;
  const std::vector<uint8_t> codes(kInputs, 0x38);
  const std::vector<float> scales{1, 10, 100}, x(kInputs, 1.0f);
  const LeafRange shard{.k_total = kInputs, .total_leaves = 4, .first_leaf = 1, .num_leaves = 3};
  PackedWeights w(WeightType::kFp8, 1, shard);
  pack_rows(w.matrix, 0, 1,
            {.type = SourceType::kFp8,
             .data = reinterpret_cast<const std::byte*>(codes.data()),
             .row_stride = kInputs,
             .scales = scales.data(),
             .scale_stride = 3});

  on_every_isa([&] {
    const std::vector<float> y = product(w.matrix, Matrix<const float>(x.data(), 1, 225));
    EXPECT_EQ(y[0], (128 - 75) * 1.0f + 128 * 10.0f + (300 - 256) * 100.0f);
  });
}

TEST(Linear, GivesNanForARowWithAnFp8Nan) {
  TestTensor w(SourceType::kFp8, 40, 200, 16);
  w.data[3 * 200 + 150] = std::byte{0xff};
  const PackedWeights packed = w.pack(WeightType::kFp8, whole(200, 1));
  const std::vector<float> zeros(200, 0.0f);

  on_every_isa([&] {
    const std::vector<float> y = product(packed.matrix, Matrix<const float>(zeros.data(), 1, 200));
    for (int n = 0; n < 40; ++n) EXPECT_EQ(std::isnan(y[n]), n == 3);
  });
}

TEST_P(LinearOfType, OfARangeOfTilesIsThoseColumns) {
  const PackedWeights w =
      TestTensor(GetParam(), 100, 300, 17).pack(same_type(GetParam()), whole(300, 16));
  const Rows x(7, 300, 18);

  on_every_isa([&] {
    const std::vector<float> want = product(w.matrix, x.view);
    std::vector<float> got(7 * 100, kNan);
    const Matrix<float> y(got.data(), 7, 100);
    for (const auto& [first, count] : {std::pair{0, 3}, {3, 0}, {3, 1}, {4, 3}}) {
      const PackedMatrix tiles = tile_range(w.matrix, first, count);
      linear(tiles, x.view, {y.data + first * kTileRows, 7, tiles.rows, y.stride}, Rounding::kNone);
    }
    EXPECT_EQ(got, want);
  });
}

TEST_P(LinearOfType, TakesInputsPreparedInPieces) {
  const PackedWeights w =
      TestTensor(GetParam(), 40, 130, 19).pack(same_type(GetParam()), whole(130, 16));
  const Rows x(9, 130, 20);

  on_every_isa([&] {
    for (const Rounding dtype : {Rounding::kNone, Rounding::kBf16}) {
      InputBuffer buffer;
      std::vector<float> want(9 * 40), got(9 * 40);
      linear(w.matrix, buffer.prepare(w.matrix, x.view, dtype), Matrix(want.data(), 9, 40),
             Rounding::kNone);
      for (const auto& [first, count] : {std::pair{0, 4}, {4, 0}, {4, 5}}) {
        const PreparedRows rows = buffer.prepare(w.matrix, x.view.rows_from(first, count), dtype);
        linear(w.matrix, rows, Matrix(got.data(), 9, 40).rows_from(first, count), Rounding::kNone);
        linear(w.matrix, rows.rows_from(count / 2, 0), Matrix<float>(nullptr, 0, 40),
               Rounding::kNone);
      }
      EXPECT_EQ(got, want);
    }
  });
}

TEST(Linear, RefusesTilesThatAreNotThere) {
  const PackedWeights w(WeightType::kF32, 40, whole(8, 1));
  EXPECT_THROW(tile_range(w.matrix, 2, 2), std::logic_error);
  EXPECT_THROW(tile_range(w.matrix, -1, 1), std::logic_error);
}

TEST(Linear, RefusesShapesThatDoNotMatch) {
  const PackedWeights w(WeightType::kF32, 4, whole(8, 1));
  std::vector<float> x(16), y(16);
  const Matrix<float> y_rows(y.data(), 2, 4);
  EXPECT_THROW(linear(w.matrix, Matrix<const float>(x.data(), 2, 7), y_rows, Rounding::kNone),
               std::logic_error);
  EXPECT_THROW(linear(w.matrix, Matrix<const float>(x.data(), 1, 8), y_rows, Rounding::kNone),
               std::logic_error);
}

TEST(Fp8, FollowsTheE4m3Format) {
  EXPECT_EQ(fp8_e4m3_to_float(0x00), 0.0f);
  EXPECT_TRUE(std::signbit(fp8_e4m3_to_float(0x80)));
  EXPECT_EQ(fp8_e4m3_to_float(0x01), 0x1p-9f);      // smallest subnormal
  EXPECT_EQ(fp8_e4m3_to_float(0x07), 7 * 0x1p-9f);  // largest subnormal
  EXPECT_EQ(fp8_e4m3_to_float(0x08), 0x1p-6f);      // smallest normal
  EXPECT_EQ(fp8_e4m3_to_float(0x38), 1.0f);
  EXPECT_EQ(fp8_e4m3_to_float(0xb9), -1.125f);
  EXPECT_EQ(fp8_e4m3_to_float(0x7e), 448.0f);  // largest
  EXPECT_TRUE(std::isnan(fp8_e4m3_to_float(0x7f)));
  EXPECT_TRUE(std::isnan(fp8_e4m3_to_float(0xff)));
}

}  // namespace
}  // namespace troupe::layers
