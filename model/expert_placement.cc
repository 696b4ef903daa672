#include "model/expert_placement.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/json_file.h"

namespace troupe::model {
namespace {

using nlohmann::json;

constexpr int64_t kMaxLayer = 4096;
constexpr int64_t kMaxPlaces = 1 << 20;  // of a layer

void check_layer(const ExpertPlacement& placement, int layer, const ModelConfig& config,
                 int moe_ep_size) {
  const std::string where = fmt::format("{}: layer {}", placement.source, layer);
  const auto& places = placement.layers.at(layer);
  const int experts = config.n_routed_experts;
  const auto num_places = static_cast<int64_t>(places.size());
  const size_t others = placement.layers.begin()->second.size();
  if (places.size() != others)
    throw_user_error("{}: {} experts, where layer {} has {}; all layers must have as many", where,
                     num_places, placement.layers.begin()->first, others);
  if (num_places % moe_ep_size != 0)
    throw_user_error(
        "{}: {} experts cannot be divided by moe_ep_size {} (= world_size / moe_tp_size)", where,
        num_places, moe_ep_size);
  if (num_places > int64_t{experts} * moe_ep_size)
    throw_user_error("{}: {} experts; {} ranks that hold all {} have {}", where, num_places,
                     moe_ep_size, experts, int64_t{experts} * moe_ep_size);
  std::vector<bool> placed(experts);
  for (const int32_t expert : places) {
    if (expert < 0 || expert >= experts)
      throw_user_error("{}: there is no expert {}; the model has {}", where, expert, experts);
    placed[expert] = true;
  }
  const auto missing = std::ranges::find(placed, false);
  if (missing != placed.end())
    throw_user_error("{}: expert {} has no place; each must be in the list", where,
                     missing - placed.begin());
}

std::vector<int32_t> layer_places(const json& layer, const std::string& file,
                                  const std::string& prefix) {
  const JsonObject object(layer, file, prefix);
  std::vector<int32_t> places;
  for (const int64_t expert : object.integers("experts", {0, kMaxPlaces}))
    places.push_back(static_cast<int32_t>(expert));
  if (places.empty() || std::ssize(places) > kMaxPlaces)
    object.fail("experts", fmt::format("must have from 1 to {} numbers", kMaxPlaces));
  return places;
}

}  // namespace

std::vector<int> moe_layers(const ModelConfig& config) {
  std::vector<int> layers;
  const int last = config.num_hidden_layers + (config.num_nextn_predict_layers > 0 ? 1 : 0);
  for (int layer = 0; layer < last; ++layer)
    if (config.is_moe_layer(layer)) layers.push_back(layer);
  return layers;
}

void check_placement(const ExpertPlacement& placement, const ModelConfig& config, int moe_ep_size) {
  const std::vector<int> wanted = moe_layers(config);
  for (const auto& [layer, places] : placement.layers)
    if (std::ranges::find(wanted, layer) == wanted.end())
      throw_user_error("{}: layer {} of the model has no routed experts; those that have: {}",
                       placement.source, layer, fmt::join(wanted, ", "));
  for (const int layer : wanted)
    if (!placement.layers.contains(layer))
      throw_user_error("{}: layer {} is missing{}", placement.source, layer,
                       layer == config.num_hidden_layers ? " (the MTP module's)" : "");
  for (const int layer : wanted) check_layer(placement, layer, config, moe_ep_size);
}

ExpertPlacement read_expert_placement(const std::filesystem::path& file) {
  const json content = read_json_file(file);
  const std::string name = file.string();
  const JsonObject top(content, name);
  if (!top.has("layers") || !content["layers"].is_array() || content["layers"].empty())
    top.fail("layers", "must be a list of {\"layer\": 1, \"experts\": [...]}");
  ExpertPlacement placement{.layers = {}, .source = name};
  for (size_t i = 0; i < content["layers"].size(); ++i) {
    const std::string prefix = fmt::format("layers[{}].", i);
    const json& entry = content["layers"][i];
    const auto layer =
        static_cast<int>(JsonObject(entry, name, prefix).integer("layer", {0, kMaxLayer}));
    if (!placement.layers.emplace(layer, layer_places(entry, name, prefix)).second)
      throw_user_error("{}: layer {} is given twice", name, layer);
  }
  return placement;
}

json placement_json(const ExpertPlacement& placement) {
  json layers = json::array();
  for (const auto& [layer, places] : placement.layers)
    layers.push_back({{"layer", layer}, {"experts", places}});
  return {{"layers", std::move(layers)}};
}

}  // namespace troupe::model
