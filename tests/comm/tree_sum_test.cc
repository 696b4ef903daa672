#include "comm/tree_sum.h"

#include <gtest/gtest.h>

#include <cstring>
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

}  // namespace
}  // namespace troupe::comm
