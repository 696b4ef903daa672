// GPT-OSS: grouped-query attention with sinks and biases, experts in MXFP4 with biases.
#include "model/family_weights.h"

namespace troupe::model {
namespace {

class GptOssWeights final : public FamilyWeights {
 public:
  using FamilyWeights::FamilyWeights;

 private:
  AttentionWeights attention(const std::string& prefix) override {
    AttentionWeights weights;
    weights.gqa = gqa(prefix, true);
    weights.gqa->sinks = builder_.vector(sizes_.attn_tp_size, [&](int shard) {
      const Range heads = layout_.heads(shard);
      return std::vector{TensorSpec{.name = prefix + "sinks",
                                    .kind = TensorKind::kBias,
                                    .rows = heads.size(),
                                    .cols = 1,
                                    .first_row = heads.begin,
                                    .stored_shape = {config_.num_attention_heads}}};
    });
    weights.o = output_projection(prefix);
    weights.o_bias = bias(prefix + "o_proj.bias", config_.hidden_size);
    return weights;
  }

  void feed_forward(const std::string& prefix, int layer, LayerWeights& weights) override {
    const int64_t num_experts = config_.n_routed_experts, hidden = config_.hidden_size;
    MoeWeights& moe = weights.moe.emplace();
    moe.gate = replicated(router(prefix + "router.weight"));
    moe.router_bias = bias(prefix + "router.bias", num_experts);
    const Range mine = layout_.experts(builder_.world_rank());
    for (int64_t physical = mine.begin; physical < mine.end; ++physical)
      moe.experts.push_back(
          one_expert(prefix + "experts.", layout_.logical_expert(layer, physical)));
    moe.down_bias = builder_.vector({.name = prefix + "experts.down_proj_bias",
                                     .kind = TensorKind::kBias,
                                     .rows = num_experts,
                                     .cols = hidden,
                                     .stored_shape = {num_experts, hidden}});
  }

  // A stored tensor holds all experts of a layer; rows of gate_up_proj alternate gate, up, gate,
  // up.
  MlpWeights one_expert(const std::string& prefix, int64_t expert) {
    const int64_t width = config_.moe_intermediate_size, hidden = config_.hidden_size;
    const int64_t num_experts = config_.n_routed_experts;
    const auto half = [&](int64_t place) {
      return TensorSpec{.name = prefix + "gate_up_proj",
                        .kind = TensorKind::kMxfp4,
                        .rows = width,
                        .cols = hidden,
                        .first_row = expert * 2 * width + place,
                        .row_step = 2,
                        .stored_shape = {num_experts, 2 * width, hidden}};
    };
    const TensorSpec down{.name = prefix + "down_proj",
                          .kind = TensorKind::kMxfp4,
                          .rows = hidden,
                          .cols = width,
                          .first_row = expert * hidden,
                          .stored_shape = {num_experts, hidden, width}};
    MlpWeights weights = mlp(half(0), half(1), down, expert_cut());
    weights.gate_up_bias = builder_.vector(expert_cut().holder_distance, [&](int shard) {
      const Range held = expert_cut().columns(width, shard);
      const auto half_bias = [&](int64_t place) {
        return TensorSpec{.name = prefix + "gate_up_proj_bias",
                          .kind = TensorKind::kBias,
                          .rows = held.size(),
                          .cols = 1,
                          .first_row = (expert * width + held.begin) * 2 + place,
                          .row_step = 2,
                          .stored_shape = {num_experts, 2 * width}};
      };
      return std::vector{half_bias(0), half_bias(1)};
    });
    return weights;
  }
};

}  // namespace

std::unique_ptr<FamilyWeights> gpt_oss_weights(const ModelConfig& config,
                                               const ParallelLayout& layout,
                                               WeightBuilder& builder) {
  return std::make_unique<GptOssWeights>(config, layout, builder);
}

}  // namespace troupe::model
