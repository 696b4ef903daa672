// Qwen3-MoE: grouped-query attention with normed queries and keys, routed experts only.
#include "model/family_weights.h"

namespace troupe::model {
namespace {

class Qwen3MoeWeights final : public FamilyWeights {
 public:
  using FamilyWeights::FamilyWeights;

 private:
  AttentionWeights attention(const std::string& prefix) override {
    AttentionWeights weights;
    weights.gqa = gqa(prefix, false);
    weights.gqa->q_norm = norm(prefix + "q_norm.weight", config_.qk_head_dim());
    weights.gqa->k_norm = norm(prefix + "k_norm.weight", config_.qk_head_dim());
    weights.o = output_projection(prefix);
    return weights;
  }

  void feed_forward(const std::string& prefix, int layer, LayerWeights& weights) override {
    MoeWeights& moe = weights.moe.emplace();
    moe.gate = replicated(router(prefix + "gate.weight"));
    moe.experts = experts(prefix, layer);
  }
};

}  // namespace

std::unique_ptr<FamilyWeights> qwen3_moe_weights(const ModelConfig& config,
                                                 const ParallelLayout& layout,
                                                 WeightBuilder& builder) {
  return std::make_unique<Qwen3MoeWeights>(config, layout, builder);
}

}  // namespace troupe::model
