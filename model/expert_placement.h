// model/expert_placement.h: which expert lies where, when the busiest lie in several places.
//
// DeepSeek-V3's redundant experts (technical report, section 3.4): the model's experts are logical
// ones; the ranks of an expert-parallel group hold physical ones, each a copy of a logical one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace troupe::model {

struct ExpertPlacement {
  // By layer index: the logical expert of each physical one, rank by rank.
  std::map<int, std::vector<int32_t>> layers;
  std::string source;  // the file, for error messages

  bool empty() const { return layers.empty(); }
};

// The layers of a model that have routed experts; last the MTP module's, if there is one.
std::vector<int> moe_layers(const ModelConfig& config);

// Throws UserError unless every layer of moe_layers(), and no other, has a place for each of its
// experts, all layers have as many places, and `moe_ep_size` ranks share them evenly.
void check_placement(const ExpertPlacement& placement, const ModelConfig& config, int moe_ep_size);

// The file of runtime_config.expert_placement:
//
//   {"layers": [{"layer": 1, "experts": [3, 0, 2, 1, 3, 5, ...]}, ...]}
//
// Throws UserError naming the file and what is wrong in it. The model is not looked at.
ExpertPlacement read_expert_placement(const std::filesystem::path& file);
nlohmann::json placement_json(const ExpertPlacement& placement);

}  // namespace troupe::model
