#include "layers/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>
#include <vector>

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
