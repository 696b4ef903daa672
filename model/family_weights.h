// model/family_weights.h: the walk over all weights of a model: what the families have in common.
// A family is one file that derives from FamilyWeights and names its tensors.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/model_config.h"
#include "model/parallel_layout.h"
#include "model/weight_builder.h"
#include "model/weights.h"

namespace troupe::model {

// Visits every weight of builder.world_rank() in the order of the forward pass.
ModelWeights build_weights(const ModelConfig& config, const ParallelLayout& layout, bool with_mtp,
                           WeightBuilder& builder);

// Rank `s` is always a holder of shard s (model/weight_builder.h), so what the layout says of rank
// s it says of shard s.
class FamilyWeights {
 public:
  FamilyWeights(const ModelConfig& config, const ParallelLayout& layout, WeightBuilder& builder)
      : config_(config), layout_(layout), sizes_(layout.sizes()), builder_(builder) {}
  virtual ~FamilyWeights() = default;

  ModelWeights model(bool with_mtp);

 protected:
  static constexpr const char* kEmbedding = "model.embed_tokens.weight";
  static std::string layer_prefix(int layer);

  // prefix: "model.layers.N.self_attn."
  virtual AttentionWeights attention(const std::string& prefix) = 0;
  // Sets weights.dense or weights.moe; prefix: "model.layers.N.mlp."
  virtual void feed_forward(const std::string& prefix, int layer, LayerWeights& weights) = 0;
  // Only asked of models with an MTP module (num_nextn_predict_layers).
  virtual MtpWeights mtp(const ModelWeights& main);

  LayerWeights decoder_layer(int layer);

  // A tensor-parallel cut, and how many ranks apart two holders of one shard stand. An expert is
  // held by one rank alone whatever its cut: there the distance is the world.
  struct Cut {
    Cut(int tp) : Cut(tp, tp) {}
    Cut(int tp, int holders) : tp_size(tp), holder_distance(holders) {}
    int tp_rank(int shard) const { return shard % tp_size; }
    Range columns(int64_t width, int shard) const {
      return ParallelLayout::columns(width, tp_rank(shard), tp_size);
    }
    int tp_size, holder_distance;
  };
  Cut expert_cut() const { return {sizes_.moe_tp_size, sizes_.world_size}; }

  // Hugging Face's names of a gated MLP: gate_proj, up_proj, down_proj.
  MlpWeights mlp(const std::string& prefix, int64_t width, Cut cut);
  MlpWeights mlp(const TensorSpec& gate, const TensorSpec& up, const TensorSpec& down, Cut cut);
  // This rank's experts of a layer, "<prefix>experts.E."
  std::vector<MlpWeights> experts(const std::string& prefix, int layer);
  // q_proj, k_proj, v_proj and, if `with_biases`, their biases: one matrix.
  GqaWeights gqa(const std::string& prefix, bool with_biases);
  PackedMatrix output_projection(const std::string& prefix);

  static TensorSpec linear(const std::string& name, int64_t rows, int64_t cols) {
    return {.name = name, .kind = TensorKind::kLinear, .rows = rows, .cols = cols};
  }
  TensorSpec router(const std::string& name) const {
    return {.name = name,
            .kind = TensorKind::kUnquantized,
            .rows = config_.n_routed_experts,
            .cols = config_.hidden_size};
  }
  std::span<const float> norm(const std::string& name, int64_t width);
  std::span<const float> bias(const std::string& name, int64_t width);
  // Of one layer's int8 KV cache; empty without a checkpoint that has them.
  std::span<const float> kv_scale(const std::string& name);
  Embedding embedding(const std::string& name);
  PackedMatrix head(const std::string& name);
  PackedMatrix replicated(const TensorSpec& tensor);
  PackedMatrix row_parallel(const TensorSpec& tensor, Cut cut);

  const ModelConfig& config_;
  const ParallelLayout& layout_;
  const ParallelSizes& sizes_;
  WeightBuilder& builder_;
};

// DeepSeek-V2, V3 and Kimi-K2 (model/deepseek.cc), GPT-OSS (model/gpt_oss.cc), Qwen3-MoE
// (model/qwen3_moe.cc).
std::unique_ptr<FamilyWeights> deepseek_weights(const ModelConfig& config,
                                                const ParallelLayout& layout,
                                                WeightBuilder& builder);
std::unique_ptr<FamilyWeights> gpt_oss_weights(const ModelConfig& config,
                                               const ParallelLayout& layout,
                                               WeightBuilder& builder);
std::unique_ptr<FamilyWeights> qwen3_moe_weights(const ModelConfig& config,
                                                 const ParallelLayout& layout,
                                                 WeightBuilder& builder);

}  // namespace troupe::model
