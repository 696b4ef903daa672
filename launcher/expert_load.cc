#include "launcher/expert_load.h"

#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "model/expert_balance.h"
#include "model/json_file.h"

namespace troupe::launcher {

using nlohmann::json;

double LayerLoad::expert_imbalance() const { return model::imbalance(experts); }
double LayerLoad::rank_imbalance() const { return model::imbalance(ranks); }

std::vector<LayerLoad> expert_load(const std::vector<RankFigures>& ranks,
                                   const model::ModelConfig& model,
                                   const model::ParallelSizes& sizes) {
  const model::ParallelLayout layout(sizes, model);
  std::map<int, LayerLoad> layers;
  for (const RankFigures& rank : ranks)
    for (const auto& [layer, rows] : rank.expert_load) {
      LayerLoad& load = layers[layer];
      load.layer = layer;
      load.experts.resize(model.n_routed_experts);
      load.ranks.resize(sizes.moe_ep_size());
      const model::Range held = layout.experts(rank.rank);
      TROUPE_CHECK(std::ssize(rows) == held.size(), "{} counts", rows.size());
      for (int64_t i = 0; i < held.size(); ++i) {
        const auto count = static_cast<double>(rows[i]);
        load.experts[layout.logical_expert(layer, held.begin + i)] += count;
        load.ranks[layout.ep_rank(rank.rank)] += count;
      }
    }
  std::vector<LayerLoad> result;
  for (auto& [layer, load] : layers)
    if (std::accumulate(load.ranks.begin(), load.ranks.end(), 0.0) > 0)
      result.push_back(std::move(load));
  return result;
}

static std::vector<int64_t> as_integers(const std::vector<double>& counts) {
  return {counts.begin(), counts.end()};
}

json expert_load_json(const std::vector<LayerLoad>& load) {
  json layers = json::array();
  for (const LayerLoad& layer : load)
    layers.push_back({{"layer", layer.layer},
                      {"counts", as_integers(layer.experts)},
                      {"rank_counts", as_integers(layer.ranks)},
                      {"expert_imbalance", layer.expert_imbalance()},
                      {"rank_imbalance", layer.rank_imbalance()}});
  return layers;
}

std::map<int, std::vector<double>> read_expert_counts(const std::filesystem::path& report,
                                                      int num_experts) {
  constexpr int64_t kMaxCount = int64_t{1} << 52;
  const json content = model::read_json_file(report);
  const std::string name = report.string();
  const model::JsonObject metrics = model::JsonObject(content, name).object("metrics");
  if (!metrics.has("expert_load") || !content["metrics"]["expert_load"].is_array() ||
      content["metrics"]["expert_load"].empty())
    metrics.fail("expert_load",
                 "must be a list with a layer at least, as `troupe run --json` "
                 "writes it for a model with experts");
  const json& layers = content["metrics"]["expert_load"];
  std::map<int, std::vector<double>> counts;
  for (size_t i = 0; i < layers.size(); ++i) {
    const model::JsonObject layer(layers[i], name, fmt::format("metrics.expert_load[{}].", i));
    const auto index = static_cast<int>(layer.integer("layer", {0, 1 << 20}));
    const std::vector<int64_t> of_layer = layer.integers("counts", {0, kMaxCount});
    if (std::ssize(of_layer) != num_experts)
      layer.fail("counts", fmt::format("has {} numbers; the model has {} experts", of_layer.size(),
                                       num_experts));
    if (!counts.emplace(index, std::vector<double>(of_layer.begin(), of_layer.end())).second)
      layer.fail("layer", fmt::format("{} is given twice", index));
  }
  return counts;
}

}  // namespace troupe::launcher
