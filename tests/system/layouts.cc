#include "tests/system/layouts.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <string_view>

namespace troupe::system_tests {
namespace {

constexpr std::string_view kAllToAll = "enable_o_proj_alltoall";
constexpr int kCandidates = 60;  // layouts from which the best is taken

using Random = std::minstd_rand;  // the same numbers on every machine

bool goes_together(const Setting& a, const Setting& b) {
  const auto& [axis_a, value_a] = std::min(a, b);
  const auto& [axis_b, value_b] = std::max(a, b);
  const bool is_size = axes()[axis_b].key != kAllToAll;
  return axis_a != 0 || !is_size || value_a % value_b == 0;
}

// Any layout with both settings.
Layout random_layout(const SettingPair& with, Random& random) {
  Layout layout(axes().size());
  do {
    for (size_t axis = 0; axis < layout.size(); ++axis) {
      const std::vector<int>& values = axes()[axis].values;
      do {
        layout[axis] = values[random() % values.size()];
      } while (axis > 0 && !goes_together({0, layout[0]}, {axis, layout[axis]}));
    }
    for (const auto& [axis, value] : {with.first, with.second}) layout[axis] = value;
  } while (!is_possible(layout));
  return layout;
}

}  // namespace

const std::vector<Axis>& axes() {
  static const std::vector<Axis> all{{"world_size", {1, 2, 4, 8, 16}},
                                     {"attn_tp_size", {1, 2, 4, 8}},
                                     {"moe_tp_size", {1, 2, 4, 8, 16}},
                                     {"dense_tp_size", {1, 2, 4, 8, 16}},
                                     {"shared_tp_size", {1, 2, 4, 8, 16}},
                                     {"lmhead_tp_size", {1, 2, 4, 8, 16}},
                                     {"embed_tp_size", {1, 2, 4, 8, 16}},
                                     {"o_proj_tp_size", {1, 2, 4, 8}},
                                     {kAllToAll.data(), {0, 1}}};
  return all;
}

std::string to_string(const Layout& layout) {
  std::string text;
  for (size_t axis = 0; axis < layout.size(); ++axis)
    text += fmt::format("{}{} {}", axis == 0 ? "" : ", ", axes()[axis].key, layout[axis]);
  return text;
}

json with_layout(json config, const Layout& layout) {
  for (size_t axis = 0; axis < layout.size(); ++axis) {
    const char* key = axes()[axis].key;
    if (key == kAllToAll)
      config["model_config"]["custom_params"][key] = layout[axis] != 0;
    else
      config["parallel_config"][key] = layout[axis];
  }
  return config;
}

bool is_possible(const Layout& layout) {
  for (size_t axis = 1; axis < layout.size(); ++axis)
    if (!goes_together({0, layout[0]}, {axis, layout[axis]})) return false;
  return true;
}

std::vector<SettingPair> possible_pairs() {
  std::vector<SettingPair> pairs;
  for (size_t a = 0; a < axes().size(); ++a)
    for (size_t b = a + 1; b < axes().size(); ++b)
      for (const int value_a : axes()[a].values)
        for (const int value_b : axes()[b].values)
          if (goes_together({a, value_a}, {b, value_b}))
            pairs.push_back({{a, value_a}, {b, value_b}});
  return pairs;
}

bool has(const Layout& layout, const SettingPair& pair) {
  return layout[pair.first.first] == pair.first.second &&
         layout[pair.second.first] == pair.second.second;
}

std::vector<Layout> pairwise_layouts() {
  Random random;
  std::vector<SettingPair> missing = possible_pairs();
  std::vector<Layout> layouts;
  while (!missing.empty()) {
    const auto added = [&](const Layout& layout) {
      return std::ranges::count_if(missing, [&](const auto& pair) { return has(layout, pair); });
    };
    Layout best = random_layout(missing.front(), random);
    for (int i = 1; i < kCandidates; ++i) {
      const Layout candidate = random_layout(missing[random() % missing.size()], random);
      if (added(candidate) > added(best)) best = candidate;
    }
    std::erase_if(missing, [&](const auto& pair) { return has(best, pair); });
    layouts.push_back(best);
  }
  return layouts;
}

}  // namespace troupe::system_tests
