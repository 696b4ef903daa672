#include "model/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "layers/packed_matrix.h"
#include "model/json_file.h"

namespace troupe::model {
namespace {

// Far above every published model, and small enough that no product of three sizes overflows.
constexpr IntegerBounds kVocab{1, 1 << 22};
constexpr IntegerBounds kWidth{1, 1 << 17};
constexpr IntegerBounds kHeadDim{1, 1 << 12};
constexpr IntegerBounds kLoraRank{1, 1 << 15};
constexpr IntegerBounds kHeads{1, 1 << 12};
constexpr IntegerBounds kLayers{1, 1024};
constexpr IntegerBounds kExperts{0, 4096};
constexpr NumberBounds kRotations{1e-6, 1e6};

int as_int(int64_t value) { return static_cast<int>(value); }

void read_sizes(const JsonObject& json, ModelConfig& config) {
  config.vocab_size = json.integer("vocab_size", kVocab);
  config.hidden_size = json.integer("hidden_size", kWidth);
  config.intermediate_size = json.integer("intermediate_size", kWidth);
  config.num_hidden_layers = as_int(json.integer("num_hidden_layers", kLayers));
  config.num_nextn_predict_layers = as_int(json.integer("num_nextn_predict_layers", {0, 16}, 0));
  config.max_position_embeddings = json.integer("max_position_embeddings", {1, 1 << 30});
  config.rms_norm_eps = static_cast<float>(json.number("rms_norm_eps", {1e-30, 1}));
  config.tie_word_embeddings = json.boolean("tie_word_embeddings", false);
  json.choice<bool>("hidden_act", {{"silu", true}}, true);
}

// num_key_value_heads says nothing here: MLA has one latent row for all heads.
void read_attention(const JsonObject& json, ModelConfig& config) {
  config.num_attention_heads = as_int(json.integer("num_attention_heads", kHeads));
  config.q_lora_rank = json.integer("q_lora_rank", {0, kLoraRank.max}, 0);
  config.kv_lora_rank = json.integer("kv_lora_rank", kLoraRank);
  config.qk_nope_head_dim = json.integer("qk_nope_head_dim", kHeadDim);
  config.qk_rope_head_dim = json.integer("qk_rope_head_dim", kHeadDim);
  config.v_head_dim = json.integer("v_head_dim", kHeadDim);
  if (config.qk_rope_head_dim % 2 != 0)
    json.fail("qk_rope_head_dim", "must be even: rotary embedding turns pairs");
  if (json.boolean("attention_bias", false))
    json.fail("attention_bias", "true is not supported; supported: false");
}

// Transformers 5 writes one object with rope_theta in it, earlier versions two keys.
void read_rope(const JsonObject& json, ModelConfig& config) {
  constexpr NumberBounds kTheta{1.001, 1e12};  // 1 would turn all pairs alike
  const char* key = json.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  config.rope_theta = json.number("rope_theta", kTheta, 10000);
  if (!json.has(key)) return;
  const JsonObject scaling = json.object(key);
  config.rope_theta = scaling.number("rope_theta", kTheta, config.rope_theta);
  const char* type_key = scaling.has("rope_type") ? "rope_type" : "type";
  if (!scaling.choice<bool>(type_key, {{"yarn", true}, {"default", false}})) return;
  layers::YarnConfig yarn;
  yarn.factor = scaling.number("factor", {1, 1e6});
  yarn.beta_fast = scaling.number("beta_fast", kRotations, yarn.beta_fast);
  yarn.beta_slow = scaling.number("beta_slow", kRotations, yarn.beta_slow);
  yarn.mscale = scaling.number("mscale", {0, 1e6}, yarn.mscale);
  yarn.mscale_all_dim = scaling.number("mscale_all_dim", {0, 1e6}, yarn.mscale_all_dim);
  yarn.original_max_position_embeddings =
      scaling.integer("original_max_position_embeddings", {1, 1 << 30});
  yarn.truncate = scaling.boolean("truncate", yarn.truncate);
  if (scaling.has("attention_factor"))
    scaling.fail("attention_factor", "is not supported: it follows from factor");
  config.yarn = yarn;
}

enum class TopkMethod { kGreedy, kGroupLimitedGreedy, kNoauxTc };

void check_groups(const JsonObject& json, const layers::TopkGateConfig& gate) {
  if (gate.num_experts % gate.num_groups != 0)
    json.fail("n_group", fmt::format("{} does not divide n_routed_experts {}", gate.num_groups,
                                     gate.num_experts));
  const int group_size = gate.num_experts / gate.num_groups;
  if (gate.num_groups > 1 && gate.group_score == layers::GroupScore::kTopTwoSum && group_size < 2)
    json.fail("n_group", "leaves one expert per group; noaux_tc scores a group by two");
  if (gate.topk > gate.topk_groups * group_size)
    json.fail("num_experts_per_tok",
              fmt::format("{} is more than topk_group {} groups of {} experts hold", gate.topk,
                          gate.topk_groups, group_size));
}

// Missing keys mean what the Hugging Face configuration classes of the two families default to.
//
// Weights follow deepseek-ai/DeepSeek-V3, inference/model.py, Gate: sigmoid scores are divided by
// their sum, softmax scores are not (norm_topk_prob can say otherwise), and both are multiplied by
// the scaling factor. Hugging Face's DeepSeek-V2 leaves the factor out when norm_topk_prob is set;
// no published checkpoint sets both.
void read_gate(const JsonObject& json, ModelConfig& config) {
  const bool v3 = config.family == Family::kDeepseekV3;
  const auto method =
      json.choice<TopkMethod>("topk_method",
                              {{"greedy", TopkMethod::kGreedy},
                               {"group_limited_greedy", TopkMethod::kGroupLimitedGreedy},
                               {"noaux_tc", TopkMethod::kNoauxTc}},
                              v3 ? TopkMethod::kNoauxTc : TopkMethod::kGreedy);
  layers::TopkGateConfig& gate = config.gate;
  gate.num_experts = config.n_routed_experts;
  gate.topk = as_int(json.integer("num_experts_per_tok", {1, gate.num_experts}));
  gate.score = json.choice<layers::ScoreFunction>(
      "scoring_func",
      {{"sigmoid", layers::ScoreFunction::kSigmoid}, {"softmax", layers::ScoreFunction::kSoftmax}},
      v3 ? layers::ScoreFunction::kSigmoid : layers::ScoreFunction::kSoftmax);
  gate.normalize = json.boolean("norm_topk_prob", gate.score == layers::ScoreFunction::kSigmoid);
  gate.routed_scale =
      static_cast<float>(json.number("routed_scaling_factor", {1e-6, 1e6}, v3 ? 2.5 : 1.0));
  gate.group_score =
      method == TopkMethod::kNoauxTc ? layers::GroupScore::kTopTwoSum : layers::GroupScore::kMax;
  config.gate_has_bias = method == TopkMethod::kNoauxTc;
  gate.num_groups = gate.topk_groups = 1;
  if (method != TopkMethod::kGreedy) {
    gate.num_groups = as_int(json.integer("n_group", {1, gate.num_experts}, v3 ? 8 : 1));
    gate.topk_groups = as_int(json.integer("topk_group", {1, gate.num_groups}, v3 ? 4 : 1));
  }
  check_groups(json, gate);
}

void read_moe(const JsonObject& json, ModelConfig& config) {
  config.n_routed_experts = as_int(json.integer("n_routed_experts", kExperts, 0));
  if (config.n_routed_experts == 0) return;  // a dense model
  config.moe_intermediate_size = json.integer("moe_intermediate_size", kWidth);
  // Missing: none, as in the modeling_deepseek.py of the checkpoints. (Transformers' own classes
  // have other defaults, which no published config.json relies on.)
  config.n_shared_experts = as_int(json.integer("n_shared_experts", {0, 64}, 0));
  config.first_k_dense_replace =
      as_int(json.integer("first_k_dense_replace", {0, config.num_hidden_layers}, 0));
  config.moe_layer_freq = as_int(json.integer("moe_layer_freq", kLayers, 1));
  read_gate(json, config);
}

// Query heads share key and value heads.
void read_gqa(const JsonObject& json, ModelConfig& config) {
  config.num_attention_heads = as_int(json.integer("num_attention_heads", kHeads));
  config.num_key_value_heads =
      as_int(json.integer("num_key_value_heads", {1, config.num_attention_heads}));
  if (config.num_attention_heads % config.num_key_value_heads != 0)
    json.fail("num_key_value_heads",
              fmt::format("{} does not divide num_attention_heads {}", config.num_key_value_heads,
                          config.num_attention_heads));
  config.qk_rope_head_dim = config.v_head_dim = json.integer("head_dim", kHeadDim);
  if (config.qk_rope_head_dim % 2 != 0)
    json.fail("head_dim", "must be even: rotary embedding turns pairs");
  config.rope_pairs = layers::RopePairs::kHalves;
}

// Without layer_types every other layer slides, beginning with the first.
void read_sliding_layers(const JsonObject& json, const nlohmann::json& file, ModelConfig& config) {
  config.sliding_window = json.integer("sliding_window", {1, 1 << 30});
  if (!json.has("layer_types")) {
    for (int layer = 0; layer < config.num_hidden_layers; ++layer)
      config.sliding_layers.push_back(layer % 2 == 0);
    return;
  }
  const nlohmann::json& types = file["layer_types"];
  if (!types.is_array() || std::ssize(types) != config.num_hidden_layers)
    json.fail("layer_types", "must be a list with one entry per layer");
  for (const nlohmann::json& type : types) {
    if (type != "sliding_attention" && type != "full_attention")
      json.fail("layer_types", "holds another entry than sliding_attention and full_attention");
    config.sliding_layers.push_back(type == "sliding_attention");
  }
}

// Each layer has experts and no other MLP (openai/gpt-oss, gpt_oss/torch/model.py).
void read_gpt_oss(const JsonObject& json, const nlohmann::json& file, ModelConfig& config) {
  read_gqa(json, config);
  read_sliding_layers(json, file, config);
  if (!json.boolean("attention_bias", true))
    json.fail("attention_bias", "false is not supported; supported: true");
  config.n_routed_experts = as_int(json.integer("num_local_experts", {1, kExperts.max}));
  config.moe_intermediate_size = config.intermediate_size;
  config.clamped_swiglu.emplace();
  config.clamped_swiglu->limit =
      static_cast<float>(json.number("swiglu_limit", {1e-3, 1e6}, config.clamped_swiglu->limit));
  const char* topk = json.has("num_experts_per_tok") ? "num_experts_per_tok" : "experts_per_token";
  config.gate.num_experts = config.n_routed_experts;
  config.gate.num_groups = config.gate.topk_groups = 1;
  config.gate.topk = as_int(json.integer(topk, {1, config.n_routed_experts}));
  config.gate.score = layers::ScoreFunction::kSoftmaxOfChosen;
}

// Hugging Face's configuration_qwen3_moe.py; every layer has experts, as in all published models.
void read_qwen3_moe(const JsonObject& json, ModelConfig& config) {
  read_gqa(json, config);
  for (const char* key : {"attention_bias", "use_sliding_window"})
    if (json.boolean(key, false)) json.fail(key, "true is not supported; supported: false");
  if (json.integer("decoder_sparse_step", kLayers, 1) != 1)
    json.fail("decoder_sparse_step", "must be 1: dense layers are not supported");
  if (!json.integers("mlp_only_layers", {0, kLayers.max}).empty())
    json.fail("mlp_only_layers", "must be empty: dense layers are not supported");
  config.n_routed_experts = as_int(json.integer("num_experts", {1, kExperts.max}));
  config.moe_intermediate_size = json.integer("moe_intermediate_size", kWidth);
  layers::TopkGateConfig& gate = config.gate;
  gate.num_experts = config.n_routed_experts;
  gate.topk = as_int(json.integer("num_experts_per_tok", {1, config.n_routed_experts}));
  gate.score = layers::ScoreFunction::kSoftmax;
  gate.normalize = json.boolean("norm_topk_prob", false);
}

void read_fp8(const JsonObject& quantization, ModelConfig& config) {
  quantization.choice<bool>("fmt", {{"e4m3", true}}, true);
  quantization.choice<bool>("activation_scheme", {{"dynamic", true}}, true);
  const std::vector<int64_t> block = quantization.integers("weight_block_size", {1, 1 << 17});
  if (block != std::vector<int64_t>{layers::kFp8Block, layers::kFp8Block})
    quantization.fail("weight_block_size", "is not supported; supported: [128, 128]");
  config.fp8_weights = true;
  config.weight_bits = 8;
}

// cann-recipes-infer's w8a8c8, or rows with scales of their own.
void read_kv_cache_scheme(const JsonObject& quantization, ModelConfig& config) {
  if (!quantization.has("kv_cache_scheme")) return;
  const JsonObject scheme = quantization.object("kv_cache_scheme");
  scheme.integer("num_bits", {8, 8});
  scheme.choice<bool>("type", {{"int", true}});
  config.int8_kv_cache = true;
  config.kv_cache_scales = !scheme.boolean("dynamic", false);
  if (config.kv_cache_scales) scheme.choice<bool>("strategy", {{"tensor", true}}, true);
}

// int8 or int4 codes with scales, as converted checkpoints have them.
void read_compressed_tensors(const JsonObject& quantization, ModelConfig& config) {
  const JsonObject weights =
      quantization.object("config_groups").object("group_0").object("weights");
  config.weight_bits = as_int(weights.integer("num_bits", {4, 8}));
  read_kv_cache_scheme(quantization, config);
  if (config.weight_bits == 8) {
    config.int8_weights = weights.choice<bool>("strategy", {{"channel", true}}, true);
    return;
  }
  config.not_runnable = fmt::format(
      "quantization_config compressed-tensors ({} bits) can be checked, not run yet; "
      "use the fp8 or bf16 checkpoint",
      config.weight_bits);
}

void read_quantization(const JsonObject& json, ModelConfig& config) {
  if (!json.has("quantization_config")) return;
  const JsonObject quantization = json.object("quantization_config");
  if (config.family == Family::kGptOss) {
    quantization.choice<bool>("quant_method", {{"mxfp4", true}});
    config.weight_bits = 4;
  } else if (quantization.choice<bool>("quant_method",
                                       {{"fp8", true}, {"compressed-tensors", false}})) {
    read_fp8(quantization, config);
  } else {
    read_compressed_tensors(quantization, config);
  }
}

void read_eos(const std::filesystem::path& directory, const JsonObject& json, ModelConfig& config) {
  const IntegerBounds ids{0, config.vocab_size - 1};
  std::vector<int64_t> found;
  const std::filesystem::path path = directory / "generation_config.json";
  if (std::filesystem::exists(path)) {
    const nlohmann::json generation = read_json_file(path);
    found = JsonObject(generation, path.string()).integers("eos_token_id", ids);
  }
  if (found.empty()) found = json.integers("eos_token_id", ids);
  for (const int64_t id : found) config.eos_token_ids.push_back(static_cast<int32_t>(id));
}

// GGUF files hold other tensors, in quantisations of their own, and no config.json.
void refuse_gguf(const std::filesystem::path& path) {
  const auto refuse = [&](const std::filesystem::path& found) {
    throw_user_error(
        "{}: GGUF files are not read; give the directory of the checkpoint that it was made from "
        "(config.json and *.safetensors, as published on Hugging Face)",
        found.string());
  };
  if (path.extension() == ".gguf") refuse(path);
  if (!std::filesystem::is_directory(path) || std::filesystem::exists(path / "config.json")) return;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (entry.path().extension() == ".gguf") refuse(entry.path());
}

}  // namespace

float ModelConfig::softmax_scale() const {
  const layers::Rope rope(static_cast<int>(qk_rope_head_dim), rope_theta, yarn);
  return static_cast<float>(rope.softmax_scale_factor() /
                            std::sqrt(static_cast<double>(qk_head_dim())));
}

int ModelConfig::kv_slot(int layer) const {
  if (!has_window()) return layer;
  const auto before = sliding_layers.begin() + layer;
  return static_cast<int>(std::count(sliding_layers.begin(), before, sliding_layers[layer]));
}

int ModelConfig::num_kv_slots(bool with_mtp) const {
  if (!has_window()) return num_hidden_layers + (with_mtp ? 1 : 0);
  const auto sliding = static_cast<int>(std::ranges::count(sliding_layers, true));
  return std::max(sliding, num_hidden_layers - sliding);
}

ModelConfig read_model_config(const std::filesystem::path& directory, ModelUse use) {
  refuse_gguf(directory);
  const std::filesystem::path path = directory / "config.json";
  const nlohmann::json file = read_json_file(path);
  const JsonObject json(file, path.string());
  ModelConfig config;
  config.family = json.choice<Family>("model_type", {{"deepseek_v2", Family::kDeepseekV2},
                                                     {"deepseek_v3", Family::kDeepseekV3},
                                                     {"kimi_k2", Family::kDeepseekV3},
                                                     {"gpt_oss", Family::kGptOss},
                                                     {"qwen3_moe", Family::kQwen3Moe}});
  config.model_type = file["model_type"];
  read_sizes(json, config);
  read_rope(json, config);
  switch (config.family) {
    case Family::kDeepseekV2:
    case Family::kDeepseekV3:
      read_attention(json, config);
      read_moe(json, config);
      break;
    case Family::kGptOss:
      read_gpt_oss(json, file, config);
      break;
    case Family::kQwen3Moe:
      read_qwen3_moe(json, config);
      break;
  }
  read_quantization(json, config);
  read_eos(directory, json, config);
  if (!config.not_runnable.empty()) {
    config.not_runnable = fmt::format("{}: {}", path.string(), config.not_runnable);
    if (use == ModelUse::kRun) throw UserError(config.not_runnable);
  }
  return config;
}

}  // namespace troupe::model
