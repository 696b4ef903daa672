// tests/model/weight_walk.h: every element of a rank's packed weights, by the name and the place it
// has in a checkpoint. Written from the layouts' definition, not from the code that packs.
#pragma once

#include <functional>
#include <string>

#include "model/weights.h"

namespace troupe::model {

// One element of a stored tensor as a rank holds it. Vectors have row 0.
struct HeldElement {
  const std::string& tensor;
  int64_t row, col;
  float value;
  bool rounded;  // to bf16 when it was packed
};

// Element (row, k) of a packed matrix, as layers/packed_matrix.h draws it.
inline float element(const PackedMatrix& matrix, int64_t row, int64_t k) {
  const int64_t tile = row / layers::kTileRows, lane = row % layers::kTileRows;
  const int64_t index = (tile * matrix.cols + k) * layers::kTileRows + lane;
  switch (matrix.type) {
    case layers::WeightType::kF32:
      return reinterpret_cast<const float*>(matrix.data)[index];
    case layers::WeightType::kBf16:
      return to_float(reinterpret_cast<const Bf16*>(matrix.data)[index]);
    default:
      break;
  }
  const int64_t first = matrix.leaves.k_begin();
  const int64_t block = (first + k) / layers::kFp8Block - first / layers::kFp8Block;
  const float scale = matrix.scales[(tile * matrix.k_blocks() + block) * layers::kTileRows + lane];
  return layers::fp8_e4m3_to_float(static_cast<uint8_t>(matrix.data[index])) * scale;
}

// Ranks that cut one o_proj: attention's, unless heads are first turned into tokens.
inline int num_o_proj_ranks(const ParallelSizes& sizes) {
  const bool turned = sizes.enable_o_proj_alltoall || sizes.o_proj_tp_size > 1;
  return turned ? sizes.o_proj_tp_size : sizes.attn_tp_size;
}

inline bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// How many ranks hold each element of a tensor.
inline int num_holders(const std::string& tensor, const ParallelSizes& sizes) {
  const int world = sizes.world_size;
  if (contains(tensor, "mlp.experts.")) return 1;
  if (contains(tensor, "shared_experts")) return world / sizes.shared_tp_size;
  if (contains(tensor, "mlp.gate.") || contains(tensor, "norm")) return world;
  if (contains(tensor, "mlp.")) return world / sizes.dense_tp_size;
  if (contains(tensor, "embed_tokens")) return world / sizes.embed_tp_size;
  if (contains(tensor, "head")) return world / sizes.lmhead_tp_size;
  if (contains(tensor, "q_b_proj") || contains(tensor, "q_proj") || contains(tensor, "kv_b_proj"))
    return world / sizes.attn_tp_size;
  if (contains(tensor, "o_proj")) return world / num_o_proj_ranks(sizes);
  return world;
}

class WeightWalk {
 public:
  using Visit = std::function<void(const HeldElement&)>;

  WeightWalk(const ModelConfig& config, const ParallelSizes& sizes, int rank, Visit visit)
      : config_(config), sizes_(sizes), rank_(rank), visit_(std::move(visit)) {}

  void model(const ModelWeights& weights) {
    embedding("model.embed_tokens.weight", weights.embed);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer)
      decoder_layer(layer, weights.layers.at(layer));
    vector("model.norm.weight", weights.final_norm);
    head(config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
         weights.lm_head);
    if (weights.mtp) mtp(*weights.mtp);
  }

  void head(const std::string& name, const PackedMatrix& head) {
    const int tp = sizes_.lmhead_tp_size;
    matrix(name, head, rank_ % tp * config_.vocab_size / tp, 0);
  }

  void embedding(const std::string& name, const Embedding& table) {
    const int tp = sizes_.embed_tp_size;
    const int64_t first = rank_ % tp * config_.vocab_size / tp;
    for (int64_t row = 0; row < table.vocab.size(); ++row) {
      for (int64_t col = 0; col < config_.hidden_size; ++col) {
        const int64_t index = row * config_.hidden_size + col;
        visit_({name, first + row, col,
                table.dtype == Dtype::kF32
                    ? reinterpret_cast<const float*>(table.rows)[index]
                    : to_float(reinterpret_cast<const Bf16*>(table.rows)[index]),
                false});
      }
    }
  }

 private:
  // `matrix` holds rows from first_row and inputs from first_col of the tensor.
  void matrix(const std::string& name, const PackedMatrix& matrix, int64_t first_row,
              int64_t first_col) {
    rows(name, matrix, 0, matrix.rows, first_row, first_col);
  }

  void rows(const std::string& name, const PackedMatrix& matrix, int64_t begin, int64_t end,
            int64_t first_row, int64_t first_col) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t k = 0; k < matrix.cols; ++k)
        visit_({name, first_row + row - begin, first_col + k, element(matrix, row, k),
                matrix.type == layers::WeightType::kBf16});
  }

  void vector(const std::string& name, std::span<const float> values) {
    for (size_t i = 0; i < values.size(); ++i)
      visit_({name, 0, static_cast<int64_t>(i), values[i], false});
  }

  // The shard of `width` columns that begins at leaf tp_rank * 16 / tp of 16.
  static int64_t shard_begin(int64_t width, int tp_rank, int tp) {
    return tp_rank * (16 / tp) * width / 16;
  }

  void mlp(const std::string& prefix, const MlpWeights& weights, int64_t width, int tp) {
    const int64_t first = shard_begin(width, rank_ % tp, tp);
    const int64_t held = shard_begin(width, rank_ % tp + 1, tp) - first;
    ASSERT_EQ(weights.gate_up.rows, 2 * held) << prefix;
    rows(prefix + "gate_proj.weight", weights.gate_up, 0, held, first, 0);
    rows(prefix + "up_proj.weight", weights.gate_up, held, 2 * held, first, 0);
    ASSERT_EQ(weights.down.leaves.total_leaves, 16);
    matrix(prefix + "down_proj.weight", weights.down, 0, first);
  }

  void attention(const std::string& prefix, const AttentionWeights& attention) {
    const MlaWeights& weights = *attention.mla;
    const int tp = sizes_.attn_tp_size;
    const int64_t heads = config_.num_attention_heads / tp;
    const int64_t first_head = rank_ % tp * heads;
    if (config_.q_lora_rank > 0) {
      matrix(prefix + "q_a_proj.weight", weights.q_a, 0, 0);
      vector(prefix + "q_a_layernorm.weight", weights.q_a_norm);
    }
    matrix(prefix + (config_.q_lora_rank > 0 ? "q_b_proj.weight" : "q_proj.weight"), weights.q_b,
           first_head * config_.qk_head_dim(), 0);
    matrix(prefix + "kv_a_proj_with_mqa.weight", weights.kv_a, 0, 0);
    vector(prefix + "kv_a_layernorm.weight", weights.kv_a_norm);
    ASSERT_EQ(std::ssize(weights.w_uk), heads);
    ASSERT_EQ(std::ssize(weights.w_uv), heads);
    for (int64_t i = 0; i < heads; ++i)
      kv_b_head(prefix + "kv_b_proj.weight", first_head + i, weights.w_uk[i], weights.w_uv[i]);
    ASSERT_EQ(attention.o.leaves.total_leaves, 16);
    const int o_proj_tp = num_o_proj_ranks(sizes_);
    const int64_t o_proj_head = rank_ % o_proj_tp * config_.num_attention_heads / o_proj_tp;
    matrix(prefix + "o_proj.weight", attention.o, 0, o_proj_head * config_.v_head_dim);
  }

  void kv_b_head(const std::string& name, int64_t head, const PackedMatrix& w_uk,
                 const PackedMatrix& w_uv) {
    const int64_t nope = config_.qk_nope_head_dim;
    const int64_t first_row = head * (nope + config_.v_head_dim);
    ASSERT_EQ(w_uk.rows, config_.kv_lora_rank);
    ASSERT_EQ(w_uk.cols, nope);
    for (int64_t latent = 0; latent < w_uk.rows; ++latent)
      for (int64_t i = 0; i < nope; ++i)
        visit_({name, first_row + i, latent, element(w_uk, latent, i),
                w_uk.type == layers::WeightType::kBf16});
    matrix(name, w_uv, first_row + nope, 0);
  }

  void moe(const std::string& prefix, const MoeWeights& weights) {
    matrix(prefix + "gate.weight", weights.gate, 0, 0);
    vector(prefix + "gate.e_score_correction_bias", weights.gate_bias);
    const int ep = sizes_.world_size / sizes_.moe_tp_size;
    const int held = config_.n_routed_experts / ep;
    ASSERT_EQ(std::ssize(weights.experts), held);
    for (int i = 0; i < held; ++i)
      mlp(fmt::format("{}experts.{}.", prefix, rank_ / sizes_.moe_tp_size * held + i),
          weights.experts[i], config_.moe_intermediate_size, sizes_.moe_tp_size);
    if (weights.shared)
      mlp(prefix + "shared_experts.", *weights.shared, config_.shared_intermediate_size(),
          sizes_.shared_tp_size);
  }

  void decoder_layer(int layer, const LayerWeights& weights) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    vector(prefix + "input_layernorm.weight", weights.input_norm);
    vector(prefix + "post_attention_layernorm.weight", weights.post_attention_norm);
    attention(prefix + "self_attn.", weights.attention);
    if (weights.moe) moe(prefix + "mlp.", *weights.moe);
    if (weights.dense)
      mlp(prefix + "mlp.", *weights.dense, config_.intermediate_size, sizes_.dense_tp_size);
  }

  void mtp(const MtpWeights& weights) {
    const std::string prefix = fmt::format("model.layers.{}.", config_.num_hidden_layers);
    embedding(prefix + "embed_tokens.weight", weights.embed);
    vector(prefix + "enorm.weight", weights.enorm);
    vector(prefix + "hnorm.weight", weights.hnorm);
    matrix(prefix + "eh_proj.weight", weights.eh_proj, 0, 0);
    decoder_layer(config_.num_hidden_layers, weights.layer);
    vector(prefix + "shared_head.norm.weight", weights.head_norm);
    head(prefix + "shared_head.head.weight", weights.head);
  }

  const ModelConfig& config_;
  const ParallelSizes& sizes_;
  int rank_;
  Visit visit_;
};

}  // namespace troupe::model
