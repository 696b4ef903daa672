// tests/system/layouts.h: parallel layouts that cover every pair of settings.
#pragma once

#include <array>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "tests/system/jobs.h"

namespace troupe::system_tests {

struct Axis {
  const char* key;  // of parallel_config; enable_o_proj_alltoall is one of custom_params
  std::vector<int> values;
};
// The first is world_size, which every other size divides. For models with 8 attention heads.
const std::vector<Axis>& axes();

using Layout = std::vector<int>;  // a value per axis

std::string to_string(const Layout& layout);  // "world_size 4 attn_tp_size 2 ..."
json with_layout(json config, const Layout& layout);

bool is_possible(const Layout& layout);

// A setting of one axis together with a setting of another, some layout has both.
using Setting = std::pair<size_t, int>;  // axis, value
using SettingPair = std::pair<Setting, Setting>;
std::vector<SettingPair> possible_pairs();
bool has(const Layout& layout, const SettingPair& pair);

// Every possible pair is in one of them. The same list always; each layout was chosen for how many
// pairs it adds, so the first few cover the most.
std::vector<Layout> pairwise_layouts();

}  // namespace troupe::system_tests
