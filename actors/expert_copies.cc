#include "actors/expert_copies.h"

namespace troupe::actors {

ExpertCopies::ExpertCopies(const model::ParallelLayout& layout, const model::ModelConfig& config) {
  if (layout.sizes().expert_placement.empty()) return;
  layers_.resize(config.num_hidden_layers + 1);
  for (const int layer : model::moe_layers(config)) {
    Layer& copies = layers_[layer];
    for (int32_t expert = 0; expert < config.n_routed_experts; ++expert) {
      copies.first.push_back(static_cast<int32_t>(copies.ids.size()));
      for (int32_t id = 0; id < layout.num_physical_experts(); ++id)
        if (layout.logical_expert(layer, id) == expert) copies.ids.push_back(id);
    }
    copies.first.push_back(static_cast<int32_t>(copies.ids.size()));
  }
}

}  // namespace troupe::actors
