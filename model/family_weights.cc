#include "model/family_weights.h"

#include "base/error.h"

namespace troupe::model {
namespace {

using layers::LeafRange;

// A matrix that is cut into leaves only where its inputs are sharded.
LeafRange one_leaf(int64_t cols) { return LeafRange{.k_total = cols}; }

std::unique_ptr<FamilyWeights> family_weights(const ModelConfig& config,
                                              const ParallelLayout& layout,
                                              WeightBuilder& builder) {
  switch (config.family) {
    case Family::kDeepseekV2:
    case Family::kDeepseekV3:
      return deepseek_weights(config, layout, builder);
    case Family::kGptOss:
      return gpt_oss_weights(config, layout, builder);
    case Family::kQwen3Moe:
      return qwen3_moe_weights(config, layout, builder);
  }
  TROUPE_CHECK(false, "family {}", static_cast<int>(config.family));
}

}  // namespace

ModelWeights build_weights(const ModelConfig& config, const ParallelLayout& layout, bool with_mtp,
                           WeightBuilder& builder) {
  return family_weights(config, layout, builder)->model(with_mtp);
}

std::string FamilyWeights::layer_prefix(int layer) {
  return fmt::format("model.layers.{}.", layer);
}

ModelWeights FamilyWeights::model(bool with_mtp) {
  ModelWeights weights;
  weights.embed = embedding(kEmbedding);
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer)
    weights.layers.push_back(decoder_layer(layer));
  weights.final_norm = norm("model.norm.weight", config_.hidden_size);
  weights.lm_head = head(config_.tie_word_embeddings ? kEmbedding : "lm_head.weight");
  if (with_mtp) weights.mtp = mtp(weights);
  return weights;
}

LayerWeights FamilyWeights::decoder_layer(int layer) {
  const size_t before = builder_.held_bytes();
  const std::string prefix = layer_prefix(layer);
  LayerWeights weights;
  weights.input_norm = norm(prefix + "input_layernorm.weight", config_.hidden_size);
  weights.attention = attention(prefix + "self_attn.");
  weights.post_attention_norm =
      norm(prefix + "post_attention_layernorm.weight", config_.hidden_size);
  feed_forward(prefix + "mlp.", layer, weights);
  weights.bytes = builder_.held_bytes() - before;
  return weights;
}

MtpWeights FamilyWeights::mtp(const ModelWeights&) {
  TROUPE_CHECK(false, "model_type {} has no MTP module", config_.model_type);
}

MlpWeights FamilyWeights::mlp(const std::string& prefix, int64_t width, Cut cut) {
  return mlp(linear(prefix + "gate_proj.weight", width, config_.hidden_size),
             linear(prefix + "up_proj.weight", width, config_.hidden_size),
             linear(prefix + "down_proj.weight", config_.hidden_size, width), cut);
}

MlpWeights FamilyWeights::mlp(const TensorSpec& gate, const TensorSpec& up, const TensorSpec& down,
                              Cut cut) {
  MlpWeights weights;
  weights.gate_up = builder_.matrix(cut.holder_distance, [&](int shard) {
    const Range rows = cut.columns(gate.rows, shard);
    return MatrixSpec{{{gate, rows}, {up, rows}}, one_leaf(gate.cols)};
  });
  weights.down = row_parallel(down, cut);
  return weights;
}

std::vector<MlpWeights> FamilyWeights::experts(const std::string& prefix, int layer) {
  std::vector<MlpWeights> all;
  const Range mine = layout_.experts(builder_.world_rank());
  for (int64_t physical = mine.begin; physical < mine.end; ++physical)
    all.push_back(mlp(fmt::format("{}experts.{}.", prefix, layout_.logical_expert(layer, physical)),
                      config_.moe_intermediate_size, expert_cut()));
  return all;
}

GqaWeights FamilyWeights::gqa(const std::string& prefix, bool with_biases) {
  const int64_t head_dim = config_.qk_head_dim();
  struct Part {
    std::string name;
    int64_t heads;
    Range (ParallelLayout::*held)(int world_rank) const;
  };
  const Part parts[] = {
      {prefix + "q_proj", config_.num_attention_heads, &ParallelLayout::heads},
      {prefix + "k_proj", config_.num_key_value_heads, &ParallelLayout::kv_heads},
      {prefix + "v_proj", config_.num_key_value_heads, &ParallelLayout::kv_heads}};
  GqaWeights weights;
  weights.qkv = builder_.matrix(sizes_.attn_tp_size, [&](int shard) {
    MatrixSpec spec{{}, one_leaf(config_.hidden_size)};
    for (const Part& part : parts) {
      const Range heads = (layout_.*part.held)(shard);
      spec.parts.push_back(
          {linear(part.name + ".weight", part.heads * head_dim, config_.hidden_size),
           {heads.begin * head_dim, heads.end * head_dim}});
    }
    return spec;
  });
  weights.k_scale = kv_scale(prefix + "k_scale");
  weights.v_scale = kv_scale(prefix + "v_scale");
  if (!with_biases) return weights;
  weights.qkv_bias = builder_.vector(sizes_.attn_tp_size, [&](int shard) {
    std::vector<TensorSpec> biases;
    for (const Part& part : parts) {
      const Range heads = (layout_.*part.held)(shard);
      biases.push_back({.name = part.name + ".bias",
                        .kind = TensorKind::kBias,
                        .rows = heads.size(),
                        .cols = head_dim,
                        .first_row = heads.begin,
                        .stored_shape = {part.heads * head_dim}});
    }
    return biases;
  });
  return weights;
}

PackedMatrix FamilyWeights::output_projection(const std::string& prefix) {
  return row_parallel(linear(prefix + "o_proj.weight", config_.hidden_size,
                             config_.num_attention_heads * config_.v_head_dim),
                      layout_.o_proj_tp_size());
}

std::span<const float> FamilyWeights::norm(const std::string& name, int64_t width) {
  return builder_.vector({.name = name, .kind = TensorKind::kNorm, .cols = width});
}

std::span<const float> FamilyWeights::bias(const std::string& name, int64_t width) {
  return builder_.vector({.name = name, .kind = TensorKind::kBias, .cols = width});
}

std::span<const float> FamilyWeights::kv_scale(const std::string& name) {
  if (!config_.kv_cache_scales || !builder_.with_ckpt()) return {};
  return builder_.vector({.name = name, .kind = TensorKind::kScale, .cols = 1});
}

Embedding FamilyWeights::embedding(const std::string& name) {
  return builder_.embedding({.name = name,
                             .kind = TensorKind::kEmbedding,
                             .rows = config_.vocab_size,
                             .cols = config_.hidden_size},
                            sizes_.embed_tp_size,
                            [&](int shard) { return layout_.vocab_rows(shard); });
}

PackedMatrix FamilyWeights::head(const std::string& name) {
  const TensorSpec tensor{.name = name,
                          .kind = TensorKind::kHead,
                          .rows = config_.vocab_size,
                          .cols = config_.hidden_size};
  return builder_.matrix(sizes_.lmhead_tp_size, [&](int shard) {
    return MatrixSpec{{{tensor, layout_.vocab_columns(shard)}}, one_leaf(tensor.cols)};
  });
}

PackedMatrix FamilyWeights::replicated(const TensorSpec& tensor) {
  return builder_.matrix(1, [&](int) {
    return MatrixSpec{{{tensor, {0, tensor.rows}}}, one_leaf(tensor.cols)};
  });
}

PackedMatrix FamilyWeights::row_parallel(const TensorSpec& tensor, Cut cut) {
  return builder_.matrix(cut.holder_distance, [&](int shard) {
    return MatrixSpec{{{tensor, {0, tensor.rows}}},
                      ParallelLayout::leaves(tensor.cols, cut.tp_rank(shard), cut.tp_size)};
  });
}

}  // namespace troupe::model
