#include "layers/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "layers/kernels.h"
#include "tests/layers/every_isa.h"

namespace troupe::layers {
namespace {

// Cache memory that belongs to the test.
struct Owned {
  explicit Owned(const KvCacheShape& shape) : memory(shape.bytes()), cache(shape, memory.data()) {}

  template <class T>
  T at(int64_t element) const {
    T value;
    std::memcpy(&value, memory.data() + element * sizeof(T), sizeof(T));
    return value;
  }

  std::vector<std::byte> memory;
  KvCache cache;
};

constexpr KvCacheShape kShape{
    .num_layers = 2, .num_blocks = 3, .block_size = 4, .width = 5, .type = KvType::kF32};

TEST(KvCache, RowsLieInTheBlocksThatTheTableNames) {
  Owned owned(kShape);
  const std::vector<int32_t> table{2, 0};
  const std::vector<float> row{1, 2, 3, 4, 5};

  owned.cache.write(1, table, 6, row);  // the second block of the table, its third row

  const int64_t element = ((0 * 2 + 1) * 4 + 2) * 5;  // [block][layer][row][element]
  for (int i = 0; i < 5; ++i) EXPECT_EQ(owned.at<float>(element + i), row[i]);
  EXPECT_EQ(owned.cache.row(1, table, 6), owned.memory.data() + element * sizeof(float));
  EXPECT_EQ(owned.cache.block(1, 2), owned.memory.data() + (2 * 2 + 1) * 4 * 5 * sizeof(float));
}

TEST(KvCache, WritesOneRowAndNothingElse) {
  Owned owned(kShape);
  const std::vector<int32_t> table{1};

  owned.cache.write(0, table, 3, std::vector<float>{1, 1, 1, 1, 1});

  float sum = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(owned.memory.size() / 4); ++i)
    sum += owned.at<float>(i);
  EXPECT_EQ(sum, 5);
}

TEST(KvCache, WritingAPositionAgainReplacesIt) {
  Owned owned(kShape);
  const std::vector<int32_t> table{0};

  owned.cache.write(0, table, 0, std::vector<float>{9, 9, 9, 9, 9});
  owned.cache.write(0, table, 0, std::vector<float>{1, 2, 3, 4, 5});

  EXPECT_EQ(owned.at<float>(0), 1);
  EXPECT_EQ(owned.at<float>(4), 5);
}

TEST(KvCache, ForeignBlocksAreReadAndCopiedButNotWritten) {
  std::vector<std::byte> memory(kShape.bytes() + 2 * kShape.stride_bytes());
  const KvCache cache(kShape, memory.data(), 2);
  KvCacheShape other_shape = kShape;
  other_shape.num_blocks = 2;
  const KvCache other(other_shape, memory.data() + kShape.bytes());
  const std::vector<float> row{1, 2, 3, 4, 5};
  for (int layer = 0; layer < 2; ++layer) other.write(layer, std::vector<int32_t>{1}, 3, row);

  const std::vector<int32_t> foreign{4}, own{2};
  EXPECT_EQ(cache.row(1, foreign, 3), other.row(1, std::vector<int32_t>{1}, 3));
  cache.copy_block(4, 2);
  for (int layer = 0; layer < 2; ++layer)
    EXPECT_EQ(std::memcmp(cache.row(layer, own, 3), row.data(), kShape.row_bytes()), 0);
  EXPECT_THROW(cache.write(0, foreign, 0, row), std::logic_error);
  EXPECT_THROW(cache.copy_block(2, 4), std::logic_error);
  EXPECT_THROW(cache.row(0, std::vector<int32_t>{5}, 0), std::logic_error);
}

TEST(KvCache, Bf16RoundsToNearestEven) {
  KvCacheShape shape = kShape;
  shape.type = KvType::kBf16;
  Owned owned(shape);
  const std::vector<int32_t> table{0};

  owned.cache.write(0, table, 1, std::vector<float>{1, 0x1.01p0f, 0x1.03p0f, 0x1.0101p0f, -3});

  EXPECT_EQ(shape.row_bytes(), 10u);
  const float expected[] = {1, 1, 0x1.04p0f, 0x1.02p0f, -3};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(to_float(owned.at<Bf16>(5 + i)), expected[i]);
}

// A latent of 4 and a rotated key of 2: a scale, the key in bf16, codes.
KvCacheShape int8_shape() {
  return {.num_layers = 1,
          .num_blocks = 2,
          .block_size = 3,
          .width = 6,
          .type = KvType::kInt8,
          .int8_width = 4,
          .int8_group = 4};
}

TEST(KvCache, AnInt8RowIsCodesWithAScaleAndTheRestInBf16) {
  Owned owned(int8_shape());
  const std::vector<int32_t> table{1};

  owned.cache.write(0, table, 2, std::vector<float>{0.5f, -2.54f, 0.03f, 1.01f, 3, 0x1.01p0f});

  EXPECT_EQ(owned.cache.shape().row_bytes(), 12u);
  const int64_t row = (3 + 2) * 12;
  EXPECT_EQ(owned.at<float>(row / 4), 2.54f / 127);
  EXPECT_EQ(to_float(owned.at<Bf16>(row / 2 + 2)), 3);
  EXPECT_EQ(to_float(owned.at<Bf16>(row / 2 + 3)), 1);
  const int8_t codes[] = {25, -127, 2, 51};  // 0.03 / 0.02 = 1.5: to even; 1.01 / 0.02 = 50.5
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(owned.at<int8_t>(row + 8 + i), codes[i], i > 1 ? 1 : 0);
  const std::byte* at = owned.cache.row(0, table, 2);
  EXPECT_EQ(owned.cache.element(at, 1), -127 * (2.54f / 127));
  EXPECT_EQ(owned.cache.element(at, 4), 3);
}

TEST(KvCache, AGivenScaleCutsWhatItCannotReach) {
  Owned owned(int8_shape());
  const std::vector<int32_t> table{0};

  owned.cache.write(0, table, 0, std::vector<float>{0.5f, -300, 300, 0.26f, 0, 0},
                    std::vector<float>{0.25f});

  const float expected[] = {0.5f, -32, 31.75f, 0.25f};
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(owned.cache.element(owned.cache.row(0, table, 0), i), expected[i]);
}

TEST(KvCache, ARowWithANumberThatIsNoneIsNan) {
  Owned owned(int8_shape());
  const std::vector<int32_t> table{0};
  for (const float bad : {NAN, INFINITY}) {
    for (const std::vector<float>& scales : {std::vector<float>{}, {0.5f}}) {
      owned.cache.write(0, table, 0, std::vector<float>{1, bad, 2, 3, 7, 8}, scales);

      const std::byte* row = owned.cache.row(0, table, 0);
      for (int i = 0; i < 4; ++i) EXPECT_TRUE(std::isnan(owned.cache.element(row, i)));
      EXPECT_EQ(owned.cache.element(row, 4), 7);
    }
  }
}

TEST(KvCache, EveryPathQuantisesAsTheReferenceDoes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (const int count : {1, 15, 16, 17, 64, 72, 512}) {
    for (const float given : {0.0f, 0.01f, 1e-30f}) {
      std::vector<float> x(count);
      for (float& value : x) value = round_to_bf16(normal(random));
      if (count == 17) x[16] = 1e30f;
      if (count == 15) std::ranges::fill(x, 1e-35f);
      std::vector<int8_t> want(count), got(count + 1, 77);
      const float scale = reference::quantize_kv(x, given, want.data());
      on_every_isa([&] {
        EXPECT_EQ(kernels().quantize_kv(x.data(), count, given, got.data()), scale);
        EXPECT_TRUE(std::ranges::equal(want, std::span(got).first(count)));
        EXPECT_EQ(got[count], 77);
      });
    }
  }
}

TEST(KvCache, RefusesPlacesThatDoNotExist) {
  Owned owned(kShape);
  const std::vector<float> row(5);
  const std::vector<int32_t> table{0, 1}, bad_table{3}, negative_table{-1};

  EXPECT_THROW(owned.cache.write(0, table, 8, row), std::logic_error);
  EXPECT_THROW(owned.cache.write(0, table, -1, row), std::logic_error);
  EXPECT_THROW(owned.cache.write(2, table, 0, row), std::logic_error);
  EXPECT_THROW(owned.cache.write(0, bad_table, 0, row), std::logic_error);
  EXPECT_THROW(owned.cache.write(0, negative_table, 0, row), std::logic_error);
  EXPECT_THROW(owned.cache.write(0, table, 0, std::vector<float>(4)), std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
