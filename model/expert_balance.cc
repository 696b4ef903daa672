#include "model/expert_balance.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace troupe::model {
namespace {

// Numbers of `loads`, the largest load first, of equals the first.
std::vector<int> heaviest_first(std::span<const double> loads) {
  std::vector<int> order(loads.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) { return loads[a] > loads[b]; });
  return order;
}

// `loads` in `num_packs` packs of as many items each. Returns the items, pack by pack.
std::vector<int> packed(std::span<const double> loads, int num_packs) {
  const size_t room = loads.size() / num_packs;
  std::vector<std::vector<int>> packs(num_packs);
  if (room == 1) {
    for (int item = 0; item < num_packs; ++item) packs[item] = {item};
  } else {
    std::vector<double> pack_loads(num_packs);
    for (const int item : heaviest_first(loads)) {
      int lightest = -1;
      for (int pack = 0; pack < num_packs; ++pack)
        if (packs[pack].size() < room && (lightest < 0 || pack_loads[pack] < pack_loads[lightest]))
          lightest = pack;
      packs[lightest].push_back(item);
      pack_loads[lightest] += loads[item];
    }
  }
  std::vector<int> items;
  for (const std::vector<int>& pack : packs) items.insert(items.end(), pack.begin(), pack.end());
  return items;
}

// Each of `loads` once, then again and again the one whose copies have the most to do.
std::vector<int> replicated(std::span<const double> loads, size_t num_copies) {
  std::vector<int> copies(loads.size());
  std::iota(copies.begin(), copies.end(), 0);
  std::vector<double> copies_of(loads.size(), 1);
  while (copies.size() < num_copies) {
    size_t busiest = 0;
    for (size_t i = 1; i < loads.size(); ++i)
      if (loads[i] / copies_of[i] > loads[busiest] / copies_of[busiest]) busiest = i;
    copies.push_back(static_cast<int>(busiest));
    ++copies_of[busiest];
  }
  return copies;
}

// Experts, node by node: whole groups, so that nodes have about the same load.
std::vector<int> experts_by_node(std::span<const double> load, int num_groups, int num_nodes) {
  const int group_size = static_cast<int>(load.size()) / num_groups;
  std::vector<double> group_loads(num_groups);
  for (size_t expert = 0; expert < load.size(); ++expert)
    group_loads[expert / group_size] += load[expert];
  std::vector<int> experts;
  for (const int group : packed(group_loads, num_nodes))
    for (int i = 0; i < group_size; ++i) experts.push_back(group * group_size + i);
  return experts;
}

}  // namespace

std::vector<int32_t> balanced_placement(std::span<const double> load, const BalanceShape& shape) {
  const auto num_experts = static_cast<int>(load.size());
  TROUPE_CHECK(shape.num_physical >= num_experts && shape.num_physical % shape.num_ranks == 0 &&
                   shape.num_ranks % shape.num_nodes == 0 && num_experts % shape.num_groups == 0,
               "{} experts, {} places, {} ranks, {} nodes, {} groups", num_experts,
               shape.num_physical, shape.num_ranks, shape.num_nodes, shape.num_groups);
  const bool by_node = shape.num_groups % shape.num_nodes == 0;
  const int nodes = by_node ? shape.num_nodes : 1;
  const std::vector<int> experts = experts_by_node(load, by_node ? shape.num_groups : 1, nodes);
  const int per_node = num_experts / nodes;
  std::vector<int32_t> placement;
  for (int node = 0; node < nodes; ++node) {
    const std::span<const int> here(experts.data() + node * per_node, per_node);
    std::vector<double> loads;
    for (const int expert : here) loads.push_back(load[expert]);
    const std::vector<int> copies = replicated(loads, shape.num_physical / nodes);
    std::vector<double> copy_loads;
    for (const int copy : copies)
      copy_loads.push_back(loads[copy] / static_cast<double>(std::ranges::count(copies, copy)));
    for (const int item : packed(copy_loads, shape.num_ranks / nodes))
      placement.push_back(here[copies[item]]);
  }
  return placement;
}

std::vector<double> rank_loads(std::span<const double> load, std::span<const int32_t> placement,
                               int num_ranks) {
  std::vector<double> copies_of(load.size());
  for (const int32_t expert : placement) ++copies_of[expert];
  std::vector<double> loads(num_ranks);
  for (size_t place = 0; place < placement.size(); ++place)
    loads[place * num_ranks / placement.size()] +=
        load[placement[place]] / copies_of[placement[place]];
  return loads;
}

double imbalance(std::span<const double> loads) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  if (sum <= 0) return 1;
  return std::ranges::max(loads) * static_cast<double>(loads.size()) / sum;
}

}  // namespace troupe::model
