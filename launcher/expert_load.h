// launcher/expert_load.h: which experts had how much to do, and whether ranks had as much each.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launcher/world.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

struct LayerLoad {
  int layer = 0;
  std::vector<double> experts;  // [logical experts] rows computed, all copies together
  std::vector<double> ranks;    // [moe_ep_size] rows computed

  double expert_imbalance() const;  // the largest over the mean
  double rank_imbalance() const;
};

// Sums over what the ranks counted (actors::ExpertLoad); a layer without rows is left out.
std::vector<LayerLoad> expert_load(const std::vector<RankFigures>& ranks,
                                   const model::ModelConfig& model,
                                   const model::ParallelSizes& sizes);

// "expert_load" of the report: [{layer, counts, rank_counts, expert_imbalance, rank_imbalance}].
nlohmann::json expert_load_json(const std::vector<LayerLoad>& load);

// The counts of such a report, by layer index. UserError naming the file and what is wrong: counts
// that are no numbers, or not of a model with so many experts.
std::map<int, std::vector<double>> read_expert_counts(const std::filesystem::path& report,
                                                      int num_experts);

}  // namespace troupe::launcher
