// model/expert_balance.h: where to put experts, and how often, so that ranks have equal work.
//
// The Expert Parallelism Load Balancer of DeepSeek (https://github.com/deepseek-ai/EPLB): the
// experts with the largest load per copy get another copy until all places are taken; then copies
// are packed, the heaviest first, each on the rank with the least load that has room. Where the
// groups of experts can be shared evenly by nodes (group-limited routing), groups are packed on
// nodes first, and copies are made and packed inside a node, so that a token visits few nodes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace troupe::model {

struct BalanceShape {
  int num_physical = 0;  // places; divisible by num_ranks, at least as many as experts
  int num_ranks = 1;     // of the expert-parallel group
  int num_groups = 1;    // of experts (n_group), of equal size
  int num_nodes = 1;     // machines; each has num_ranks / num_nodes of the ranks, in order
};

// The logical expert of each physical one, rank by rank. load: [experts], not negative.
std::vector<int32_t> balanced_placement(std::span<const double> load, const BalanceShape& shape);

// What each rank has to do when an expert's load is shared evenly by its copies. [num_ranks]
// Ranks hold runs of the placement, of nearly equal length where it cannot be divided by them.
std::vector<double> rank_loads(std::span<const double> load, std::span<const int32_t> placement,
                               int num_ranks);

// The largest over the mean: 1 is perfect. 1 where there is no load.
double imbalance(std::span<const double> loads);

}  // namespace troupe::model
