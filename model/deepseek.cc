// DeepSeek-V2, V3 and Kimi-K2: MLA, a few dense layers, routed and shared experts, MTP.
#include "base/error.h"
#include "model/family_weights.h"

namespace troupe::model {
namespace {

using layers::LeafRange;

class DeepseekWeights final : public FamilyWeights {
 public:
  using FamilyWeights::FamilyWeights;

 private:
  AttentionWeights attention(const std::string& prefix) override {
    const int64_t query_width = config_.num_attention_heads * config_.qk_head_dim();
    AttentionWeights attention;
    MlaWeights& weights = attention.mla.emplace();
    if (config_.q_lora_rank > 0) {
      weights.q_a =
          replicated(linear(prefix + "q_a_proj.weight", config_.q_lora_rank, config_.hidden_size));
      weights.q_a_norm = norm(prefix + "q_a_layernorm.weight", config_.q_lora_rank);
      weights.q_b =
          query_of_heads(linear(prefix + "q_b_proj.weight", query_width, config_.q_lora_rank));
    } else {
      weights.q_b =
          query_of_heads(linear(prefix + "q_proj.weight", query_width, config_.hidden_size));
    }
    weights.kv_a = replicated(
        linear(prefix + "kv_a_proj_with_mqa.weight", config_.kv_width(), config_.hidden_size));
    weights.kv_a_norm = norm(prefix + "kv_a_layernorm.weight", config_.kv_lora_rank);
    weights.ckv_scale = kv_scale(prefix + "ckv_scale");
    add_kv_b(prefix + "kv_b_proj.weight", weights);
    attention.o = output_projection(prefix);
    return attention;
  }

  // Per head, kv_b holds nope rows that make keys and v rows that make values of the latent.
  void add_kv_b(const std::string& name, MlaWeights& weights) {
    const int64_t nope = config_.qk_nope_head_dim;
    const int64_t head_rows = nope + config_.v_head_dim;
    const TensorSpec kv_b =
        linear(name, config_.num_attention_heads * head_rows, config_.kv_lora_rank);
    const int64_t heads = layout_.heads(0).size();
    for (int64_t i = 0; i < heads; ++i) {
      const auto first_row = [&](int shard) {
        return (layout_.heads(shard).begin + i) * head_rows;
      };
      weights.w_uk.push_back(builder_.transposed(sizes_.attn_tp_size, [&](int shard) {
        return MatrixPart{kv_b, {first_row(shard), first_row(shard) + nope}};
      }));
      weights.w_uv.push_back(builder_.kv_b_part(sizes_.attn_tp_size, [&](int shard) {
        return MatrixPart{kv_b, {first_row(shard) + nope, first_row(shard) + head_rows}};
      }));
    }
  }

  void feed_forward(const std::string& prefix, int layer, LayerWeights& weights) override {
    if (config_.is_moe_layer(layer)) {
      weights.moe = moe(prefix, layer);
    } else {
      weights.dense = mlp(prefix, config_.intermediate_size, sizes_.dense_tp_size);
    }
  }

  MoeWeights moe(const std::string& prefix, int layer) {
    MoeWeights weights;
    weights.gate = replicated(router(prefix + "gate.weight"));
    if (config_.gate_has_bias)
      weights.gate_bias = bias(prefix + "gate.e_score_correction_bias", config_.n_routed_experts);
    weights.experts = experts(prefix, layer);
    if (config_.n_shared_experts > 0)
      weights.shared = mlp(prefix + "shared_experts.", config_.shared_intermediate_size(),
                           sizes_.shared_tp_size);
    return weights;
  }

  MtpWeights mtp(const ModelWeights& main) override {
    const int layer = config_.num_hidden_layers;
    const int64_t hidden = config_.hidden_size;
    const std::string prefix = layer_prefix(layer);
    const std::string embed_name = prefix + "embed_tokens.weight";
    const std::string head_name = prefix + "shared_head.head.weight";
    MtpWeights weights;
    weights.embed = builder_.has(embed_name) ? embedding(embed_name) : main.embed;
    weights.enorm = norm(prefix + "enorm.weight", hidden);
    weights.hnorm = norm(prefix + "hnorm.weight", hidden);
    weights.eh_proj = replicated({.name = prefix + "eh_proj.weight",
                                  .kind = TensorKind::kHead,
                                  .rows = hidden,
                                  .cols = 2 * hidden});
    weights.layer = decoder_layer(layer);
    weights.head_norm = norm(prefix + "shared_head.norm.weight", hidden);
    weights.head = builder_.has(head_name) ? head(head_name) : main.lm_head;
    return weights;
  }

  PackedMatrix query_of_heads(const TensorSpec& tensor) {
    const int64_t width = config_.qk_head_dim();
    return builder_.matrix(sizes_.attn_tp_size, [&](int shard) {
      const Range heads = layout_.heads(shard);
      return MatrixSpec{{{tensor, {heads.begin * width, heads.end * width}}},
                        LeafRange{.k_total = tensor.cols}};
    });
  }
};

}  // namespace

std::unique_ptr<FamilyWeights> deepseek_weights(const ModelConfig& config,
                                                const ParallelLayout& layout,
                                                WeightBuilder& builder) {
  return std::make_unique<DeepseekWeights>(config, layout, builder);
}

}  // namespace troupe::model
