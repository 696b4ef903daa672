#include "comm/tree_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace troupe::comm {
namespace {

std::vector<std::vector<float>> random_vectors(int count, size_t length) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<std::vector<float>> vectors(count, std::vector<float>(length));
  for (auto& vector : vectors)
    for (float& x : vector) x = uniform(random);
  return vectors;
}

std::vector<const std::byte*> pointers(const std::vector<std::vector<float>>& vectors) {
  std::vector<const std::byte*> result;
  for (const auto& vector : vectors)
    result.push_back(reinterpret_cast<const std::byte*>(vector.data()));
  return result;
}

std::vector<float> summed(const std::vector<std::vector<float>>& vectors) {
  std::vector<float> sum(vectors[0].size());
  tree_sum(DataType::kF32, pointers(vectors), reinterpret_cast<std::byte*>(sum.data()),
           sum.size() * sizeof(float));
  return sum;
}

TEST(TreeSum, AddsNeighbouringPairsAndCarriesAnOddOneUp) {
  const auto v = random_vectors(7, 1000);  // longer than one block, no multiple of it

  const auto three = summed({v.begin(), v.begin() + 3});
  const auto five = summed({v.begin(), v.begin() + 5});
  const auto six = summed({v.begin(), v.begin() + 6});
  const auto seven = summed(v);

  for (size_t i = 0; i < 1000; ++i) {
    const auto x = [&](int r) { return v[r][i]; };
    ASSERT_EQ(three[i], (x(0) + x(1)) + x(2));
    ASSERT_EQ(five[i], ((x(0) + x(1)) + (x(2) + x(3))) + x(4));
    ASSERT_EQ(six[i], ((x(0) + x(1)) + (x(2) + x(3))) + (x(4) + x(5)));
    ASSERT_EQ(seven[i], ((x(0) + x(1)) + (x(2) + x(3))) + ((x(4) + x(5)) + x(6)));
  }
}

TEST(TreeSum, ItsOrderIsVisibleInTheBits) {
  const auto v = random_vectors(5, 1000);

  const auto tree = summed(v);

  int different = 0;
  for (size_t i = 0; i < 1000; ++i)
    different += tree[i] != (((v[0][i] + v[1][i]) + v[2][i]) + v[3][i]) + v[4][i];
  EXPECT_GT(different, 0);
}

TEST(TreeSum, MayOverwriteOneOfItsSources) {
  auto v = random_vectors(4, 600);
  const auto expected = summed(v);

  tree_sum(DataType::kF32, pointers(v), reinterpret_cast<std::byte*>(v[2].data()), 600 * 4);

  EXPECT_EQ(v[2], expected);
}

TEST(TreeSum, RoundsABf16SumOnce) {
  // 256 has a step of 2 in bf16: rounding after each addition would lose every 0.75.
  const std::vector<float> values{256.0f, 0.75f, 0.75f, 0.75f};
  std::vector<Bf16> stored;
  for (const float value : values) stored.push_back(to_bf16(value));
  std::vector<const std::byte*> sources;
  for (const Bf16& x : stored) sources.push_back(reinterpret_cast<const std::byte*>(&x));
  Bf16 sum{};

  tree_sum(DataType::kBf16, sources, reinterpret_cast<std::byte*>(&sum), sizeof(Bf16));

  EXPECT_EQ(to_float(sum), 258.0f);  // 258.25, rounded
}

int8_t summed_int8(const std::vector<int8_t>& values) {
  std::vector<const std::byte*> sources;
  for (const int8_t& x : values) sources.push_back(reinterpret_cast<const std::byte*>(&x));
  int8_t sum = 0;
  tree_sum(DataType::kInt8, sources, reinterpret_cast<std::byte*>(&sum), 1);
  return sum;
}

TEST(TreeSum, CutsAnInt8SumOnce) {
  EXPECT_EQ(summed_int8({100, 100, -100, -90}), 10);  // the pairs alone would be 127 and -128
  EXPECT_EQ(summed_int8({100, 27}), 127);
  EXPECT_EQ(summed_int8({100, 28}), 127);
  EXPECT_EQ(summed_int8({-100, -28}), -128);
  EXPECT_EQ(summed_int8({-100, -29}), -128);
  EXPECT_EQ(summed_int8(std::vector<int8_t>(300, -128)), -128);
}

// What the header says, one element at a time.
float tree_of(std::vector<float> x) {
  while (x.size() > 1) {
    std::vector<float> next;
    for (size_t i = 0; i + 1 < x.size(); i += 2) next.push_back(x[i] + x[i + 1]);
    if (x.size() % 2 == 1) next.push_back(x.back());
    x = next;
  }
  return x[0];
}

class TreeSumKernels : public testing::TestWithParam<size_t> {};

TEST_P(TreeSumKernels, AllGiveTheSameBits) {
  const int count = static_cast<int>(GetParam());
  constexpr size_t kLength = 1063;  // tails of every vector width, more than one block
  const auto floats = random_vectors(count, kLength);
  std::vector<std::vector<Bf16>> halves(count);
  for (int r = 0; r < count; ++r)
    for (const float x : floats[r]) halves[r].push_back(to_bf16(x));
  halves[0][5] = to_bf16(std::numeric_limits<float>::quiet_NaN());
  halves[0][6] = to_bf16(std::numeric_limits<float>::infinity());
  std::vector<const std::byte*> half_pointers;
  for (const auto& half : halves)
    half_pointers.push_back(reinterpret_cast<const std::byte*>(half.data()));

  std::vector<std::vector<int8_t>> small(count);
  std::vector<const std::byte*> small_pointers;
  for (int r = 0; r < count; ++r) {
    for (const float x : floats[r]) small[r].push_back(static_cast<int8_t>(x * 100));
    small_pointers.push_back(reinterpret_cast<const std::byte*>(small[r].data()));
  }

  for (const TreeSumKernel& kernel : tree_sum_kernels()) {
    std::vector<float> sum(kLength);
    std::vector<int8_t> small_sum(kLength);
    kernel.sum_int8(small_pointers, reinterpret_cast<std::byte*>(small_sum.data()), kLength);
    std::vector<Bf16> half_sum(kLength);
    kernel.sum_f32(pointers(floats), reinterpret_cast<std::byte*>(sum.data()), kLength);
    kernel.sum_bf16(half_pointers, reinterpret_cast<std::byte*>(half_sum.data()), kLength);
    for (size_t i = 0; i < kLength; ++i) {
      std::vector<float> column, half_column;
      for (int r = 0; r < count; ++r) {
        column.push_back(floats[r][i]);
        half_column.push_back(to_float(halves[r][i]));
      }
      int total = 0;
      for (int r = 0; r < count; ++r) total += small[r][i];
      ASSERT_EQ(small_sum[i], std::clamp(total, -128, 127)) << kernel.name << " " << i;
      ASSERT_EQ(sum[i], tree_of(column)) << kernel.name << " " << i;
      const Bf16 expected = to_bf16(tree_of(half_column));
      ASSERT_EQ(half_sum[i].bits & 0x7fff, expected.bits & 0x7fff) << kernel.name << " " << i;
      const bool is_nan = i == 5;  // its sign is the machine's choice
      ASSERT_TRUE(is_nan || half_sum[i].bits == expected.bits) << kernel.name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sources, TreeSumKernels,
                         testing::Values(1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31));

}  // namespace
}  // namespace troupe::comm
