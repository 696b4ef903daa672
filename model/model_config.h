// model/model_config.h: what config.json says of a model, checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "layers/rope.h"
#include "layers/swiglu.h"
#include "layers/topk_gate.h"

namespace troupe::model {

enum class Family { kDeepseekV2, kDeepseekV3, kGptOss, kQwen3Moe };

// Field names are those of the Hugging Face config.json.
struct ModelConfig {
  Family family = Family::kDeepseekV3;
  std::string model_type;  // as written: "deepseek_v3"; "kimi_k2" is that family too
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;      // dense layers
  int64_t moe_intermediate_size = 0;  // one expert
  int num_hidden_layers = 0;
  int num_nextn_predict_layers = 0;  // MTP modules behind the last layer; 0 or 1 is usable
  int num_attention_heads = 0;
  int64_t q_lora_rank = 0;  // 0: the query is one projection (null in the file)
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  // Grouped-query attention (gpt_oss, qwen3_moe), where qk_rope_head_dim and v_head_dim are its
  // head_dim. MLA has one latent row for all heads and leaves these 0.
  int num_key_value_heads = 0;
  int64_t sliding_window = 0;        // positions a sliding layer sees
  std::vector<bool> sliding_layers;  // by layer; empty: none
  layers::RopePairs rope_pairs = layers::RopePairs::kAdjacent;
  int n_routed_experts = 0;
  int n_shared_experts = 0;  // 0: none
  int first_k_dense_replace = 0;
  int moe_layer_freq = 1;
  layers::TopkGateConfig gate;  // from topk_method, scoring_func, n_group, ...
  bool gate_has_bias = false;   // e_score_correction_bias (noaux_tc)
  std::optional<layers::ClampedSwiglu> clamped_swiglu;  // of the experts, in place of SwiGLU
  float rms_norm_eps = 1e-6f;
  double rope_theta = 10000;
  std::optional<layers::YarnConfig> yarn;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  bool fp8_weights = false;            // quantization_config: fp8, e4m3, blocks of 128 x 128
  bool int8_weights = false;           // compressed-tensors: int8, a scale per output row
  bool int8_kv_cache = false;          // its kv_cache_scheme: int8 rows
  bool kv_cache_scales = false;        // with a scale per layer in the checkpoint
  int weight_bits = 16;                // of a quantised matrix: 8 (fp8, int8) or 4 (int4, mxfp4)
  std::vector<int32_t> eos_token_ids;  // generation_config.json if it has them, else config.json
  std::string not_runnable;            // why this model can only be checked; empty: it can run

  bool is_moe_layer(int layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  bool uses_gqa() const { return num_key_value_heads > 0; }
  // Positions that a layer's queries see, their own included; 0: all.
  int64_t window_of(int layer) const {
    return !sliding_layers.empty() && sliding_layers[layer] ? sliding_window : 0;
  }
  bool has_window() const {
    return std::ranges::find(sliding_layers, true) != sliding_layers.end();
  }
  // A block of the KV cache holds rows of full layers, or of sliding ones: a layer's place in it,
  // and how many places there are.
  int kv_slot(int layer) const;
  int num_kv_slots(bool with_mtp) const;
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t kv_width() const { return kv_lora_rank + qk_rope_head_dim; }
  float softmax_scale() const;  // qk_head_dim^-0.5, times the YaRN factor
  int64_t shared_intermediate_size() const { return n_shared_experts * moe_intermediate_size; }
};

enum class ModelUse { kRun, kCheck };

// Reads DIR/config.json and DIR/generation_config.json. Throws UserError naming file and key when a
// key is missing, of the wrong type, out of range (every size is bounded), or asks for what is not
// implemented (an unknown model_type, scoring_func, rope type, activation, quantisation, ...). Of
// models that can be checked only (not_runnable), kRun is refused.
ModelConfig read_model_config(const std::filesystem::path& directory,
                              ModelUse use = ModelUse::kRun);

}  // namespace troupe::model
