#include "model/expert_balance.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tests/model/files.h"

namespace troupe::model {
namespace {

// The example that the published load balancer documents: 12 experts in 4 groups, two layers.
TEST(BalancedPlacement, IsThePublishedOne) {
  const BalanceShape shape{.num_physical = 16, .num_ranks = 8, .num_groups = 4, .num_nodes = 2};
  const std::vector<double> first{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
  const std::vector<double> second{20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};

  EXPECT_EQ(balanced_placement(first, shape),
            (std::vector<int32_t>{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(balanced_placement(second, shape),
            (std::vector<int32_t>{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
}

std::vector<double> skewed_load(int experts, std::mt19937& random) {
  std::vector<double> load(experts);
  std::exponential_distribution<double> count(1e-3);
  for (double& of_expert : load) of_expert = std::floor(count(random));
  return load;
}

TEST(BalancedPlacement, PlacesEveryExpertAndFillsEveryPlace) {
  std::mt19937 random(3);
  for (const BalanceShape& shape :
       {BalanceShape{.num_physical = 32}, BalanceShape{.num_physical = 40, .num_ranks = 8},
        BalanceShape{.num_physical = 64, .num_ranks = 16, .num_groups = 8, .num_nodes = 4},
        BalanceShape{.num_physical = 96, .num_ranks = 32, .num_groups = 3, .num_nodes = 2}}) {
    std::vector<double> load = skewed_load(shape.num_groups == 3 ? 33 : 32, random);

    const std::vector<int32_t> placement = balanced_placement(load, shape);

    ASSERT_EQ(std::ssize(placement), shape.num_physical);
    for (int32_t expert = 0; expert < std::ssize(load); ++expert)
      EXPECT_GE(std::ranges::count(placement, expert), 1) << expert;
  }
}

// The busiest copy can be no lighter: every other expert was given its copies first.
TEST(BalancedPlacement, GivesCopiesToTheBusiest) {
  std::mt19937 random(5);
  const std::vector<double> load = skewed_load(16, random);
  const std::vector<int32_t> placement =
      balanced_placement(load, {.num_physical = 24, .num_ranks = 4});
  std::vector<double> copies(load.size()), copy_load(load.size());
  for (const int32_t expert : placement) ++copies[expert];
  for (size_t i = 0; i < load.size(); ++i) copy_load[i] = load[i] / copies[i];
  const double busiest = std::ranges::max(copy_load);

  for (size_t i = 0; i < load.size(); ++i)
    if (copies[i] > 1) {
      EXPECT_GE(load[i] / (copies[i] - 1), busiest) << i;
    }
}

TEST(BalancedPlacement, MakesRanksMoreEvenThanTheModelsOrder) {
  std::mt19937 random(7);
  for (int i = 0; i < 20; ++i) {
    const std::vector<double> load = skewed_load(64, random);
    std::vector<int32_t> in_order(64);
    std::iota(in_order.begin(), in_order.end(), 0);

    const auto placement = balanced_placement(load, {.num_physical = 80, .num_ranks = 8});

    const double before = imbalance(rank_loads(load, in_order, 8));
    const double after = imbalance(rank_loads(load, placement, 8));
    EXPECT_LT(after, before);
    EXPECT_LT(after, 1.05);
  }
}

TEST(RankLoads, ShareAnExpertsLoadEvenlyAmongItsCopies) {
  const std::vector<double> load{6, 3, 1};

  EXPECT_EQ(rank_loads(load, std::vector<int32_t>{0, 1, 0, 2}, 2), (std::vector<double>{6, 4}));
  EXPECT_EQ(rank_loads(load, std::vector<int32_t>{0, 1, 2}, 2), (std::vector<double>{9, 1}));
  EXPECT_DOUBLE_EQ(imbalance(std::vector<double>{6, 4}), 1.2);
  EXPECT_DOUBLE_EQ(imbalance(std::vector<double>{0, 0}), 1);
}

}  // namespace
}  // namespace troupe::model
