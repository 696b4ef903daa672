#include "model/model_config.h"

#include <cmath>

#include "tests/model/files.h"

namespace troupe::model {
namespace {

using nlohmann::json;

const char* const kCheckpoints[] = {"tests/goldens/ds3-tiny-bf16", "tests/goldens/ds3-tiny-fp8",
                                    "tests/goldens/ds-v2-lite-tiny", "tests/goldens/kimi-k2-tiny",
                                    "models/tiny-moe"};

json valid_json() {
  return json::parse(read_file(source_file("tests/goldens/ds3-tiny-fp8/config.json")));
}

ModelConfig read(const json& config) {
  const TemporaryDirectory directory;
  directory.write("config.json", config.dump());
  return read_model_config(directory.path());
}

json with(const std::string& pointer, const json& value) {
  json config = valid_json();
  config[json::json_pointer(pointer)] = value;
  return config;
}

std::string error_with(const std::string& pointer, const json& value) {
  return user_error([&] { read(with(pointer, value)); });
}

TEST(ModelConfig, ReadsDeepseekV3) {
  const ModelConfig config = read_model_config(source_file("tests/goldens/ds3-tiny-bf16"));

  EXPECT_EQ(config.family, Family::kDeepseekV3);
  EXPECT_EQ(config.model_type, "deepseek_v3");
  EXPECT_EQ(config.vocab_size, 320);
  EXPECT_EQ(config.hidden_size, 128);
  EXPECT_EQ(config.intermediate_size, 256);
  EXPECT_EQ(config.moe_intermediate_size, 64);
  EXPECT_EQ(config.num_hidden_layers, 3);
  EXPECT_EQ(config.num_nextn_predict_layers, 1);
  EXPECT_EQ(config.num_attention_heads, 8);
  EXPECT_EQ(config.q_lora_rank, 96);
  EXPECT_EQ(config.kv_lora_rank, 64);
  EXPECT_EQ(config.qk_head_dim(), 48);
  EXPECT_EQ(config.kv_width(), 80);
  EXPECT_EQ(config.v_head_dim, 32);
  EXPECT_EQ(config.n_routed_experts, 16);
  EXPECT_EQ(config.shared_intermediate_size(), 64);
  EXPECT_FALSE(config.is_moe_layer(0));
  EXPECT_TRUE(config.is_moe_layer(1));
  EXPECT_TRUE(config.is_moe_layer(3));
  EXPECT_EQ(config.gate.num_experts, 16);
  EXPECT_EQ(config.gate.topk, 4);
  EXPECT_EQ(config.gate.num_groups, 4);
  EXPECT_EQ(config.gate.topk_groups, 2);
  EXPECT_EQ(config.gate.score, layers::ScoreFunction::kSigmoid);
  EXPECT_EQ(config.gate.group_score, layers::GroupScore::kTopTwoSum);
  EXPECT_TRUE(config.gate.normalize);
  EXPECT_EQ(config.gate.routed_scale, 2.5f);
  EXPECT_TRUE(config.gate_has_bias);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.max_position_embeddings, 2560);
  ASSERT_TRUE(config.yarn.has_value());
  EXPECT_EQ(config.yarn->factor, 40);
  EXPECT_EQ(config.yarn->original_max_position_embeddings, 64);
  EXPECT_EQ(config.yarn->mscale_all_dim, 1);
  EXPECT_FALSE(config.fp8_weights);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{1});
}

TEST(ModelConfig, ReadsDeepseekV2) {
  const ModelConfig config = read_model_config(source_file("tests/goldens/ds-v2-lite-tiny"));

  EXPECT_EQ(config.family, Family::kDeepseekV2);
  EXPECT_EQ(config.q_lora_rank, 0);
  EXPECT_EQ(config.num_nextn_predict_layers, 0);
  EXPECT_EQ(config.shared_intermediate_size(), 96);
  EXPECT_EQ(config.gate.topk, 6);
  EXPECT_EQ(config.gate.num_groups, 1);
  EXPECT_EQ(config.gate.score, layers::ScoreFunction::kSoftmax);
  EXPECT_FALSE(config.gate.normalize);
  EXPECT_EQ(config.gate.routed_scale, 1);
  EXPECT_FALSE(config.gate_has_bias);
}

TEST(ModelConfig, KimiK2IsDeepseekV3WithItsOwnSizes) {
  const ModelConfig config = read_model_config(source_file("tests/goldens/kimi-k2-tiny"));

  EXPECT_EQ(config.family, Family::kDeepseekV3);
  EXPECT_EQ(config.model_type, "kimi_k2");
  EXPECT_EQ(config.gate.num_experts, 24);
  EXPECT_EQ(config.gate.num_groups, 1);
  EXPECT_EQ(config.gate.topk_groups, 1);
  EXPECT_TRUE(config.gate_has_bias);
  EXPECT_EQ(config.yarn->beta_fast, 1);
  EXPECT_EQ(config.yarn->beta_slow, 1);
  EXPECT_EQ(config.not_runnable, "");
}

json gpt_oss_json() {
  return json::parse(R"({"model_type": "gpt_oss", "vocab_size": 320, "hidden_size": 128,
      "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8,
      "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 16, "num_experts_per_tok": 4,
      "attention_bias": true, "sliding_window": 16, "max_position_embeddings": 2048,
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
      "rms_norm_eps": 1e-05, "rope_theta": 150000, "eos_token_id": 2, "swiglu_limit": 7.0,
      "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": false,
                       "original_max_position_embeddings": 64},
      "quantization_config": {"quant_method": "mxfp4"}})");
}

ModelConfig check(const json& config) {
  const TemporaryDirectory directory;
  directory.write("config.json", config.dump());
  return read_model_config(directory.path(), ModelUse::kCheck);
}

TEST(ModelConfig, ReadsGptOss) {
  const ModelConfig config = check(gpt_oss_json());

  EXPECT_EQ(config.family, Family::kGptOss);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.v_head_dim, 32);
  EXPECT_EQ(config.sliding_window, 16);
  EXPECT_EQ(config.window_of(0), 16);
  EXPECT_EQ(config.window_of(1), 0);
  EXPECT_EQ(config.n_routed_experts, 16);
  EXPECT_EQ(config.moe_intermediate_size, 96);
  EXPECT_EQ(config.gate.topk, 4);
  EXPECT_EQ(config.weight_bits, 4);
  EXPECT_TRUE(config.is_moe_layer(0));
  EXPECT_EQ(config.gate.score, layers::ScoreFunction::kSoftmaxOfChosen);
  EXPECT_EQ(config.rope_pairs, layers::RopePairs::kHalves);
  EXPECT_FALSE(config.yarn->truncate);
  EXPECT_EQ(config.clamped_swiglu->limit, 7);
  EXPECT_FLOAT_EQ(config.clamped_swiglu->alpha, 1.702f);
  EXPECT_FLOAT_EQ(config.softmax_scale(), 1 / std::sqrt(32.0f));
  EXPECT_EQ(config.not_runnable, "");

  json no_types = gpt_oss_json();
  no_types.erase("layer_types");
  EXPECT_EQ(check(no_types).window_of(2), 16);
  EXPECT_EQ(check(no_types).window_of(3), 0);

  json wrong = gpt_oss_json();
  wrong["num_key_value_heads"] = 3;
  EXPECT_CONTAINS(user_error([&] { check(wrong); }), "num_key_value_heads 3 does not divide");
  wrong = gpt_oss_json();
  wrong["layer_types"].push_back("full_attention");
  EXPECT_CONTAINS(user_error([&] { check(wrong); }), "layer_types must be a list");
  wrong = gpt_oss_json();
  wrong["layer_types"][1] = "chunked_attention";
  EXPECT_CONTAINS(user_error([&] { check(wrong); }), "layer_types holds another entry");
  wrong = gpt_oss_json();
  wrong["attention_bias"] = false;
  EXPECT_CONTAINS(user_error([&] { check(wrong); }), "attention_bias false is not supported");
  wrong = gpt_oss_json();
  wrong["head_dim"] = 31;
  EXPECT_CONTAINS(user_error([&] { check(wrong); }), "head_dim must be even");
  wrong = gpt_oss_json();
  wrong["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_CONTAINS(user_error([&] { check(wrong); }), "rope_scaling.attention_factor is not");
}

// Qwen3-30B-A3B's config.json.
json qwen3_moe_json() {
  return json::parse(R"({"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
      "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
      "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
      "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1,
      "mlp_only_layers": [], "attention_bias": false, "use_sliding_window": false,
      "sliding_window": null, "max_position_embeddings": 40960, "rms_norm_eps": 1e-06,
      "rope_theta": 1000000.0, "rope_scaling": null, "tie_word_embeddings": false,
      "hidden_act": "silu", "eos_token_id": 151645})");
}

TEST(ModelConfig, ReadsQwen3Moe) {
  const ModelConfig config = check(qwen3_moe_json());

  EXPECT_EQ(config.family, Family::kQwen3Moe);
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_EQ(config.qk_head_dim(), 128);
  EXPECT_EQ(config.moe_intermediate_size, 768);
  EXPECT_EQ(config.gate.topk, 8);
  EXPECT_EQ(config.gate.score, layers::ScoreFunction::kSoftmax);
  EXPECT_TRUE(config.gate.normalize);
  EXPECT_EQ(config.rope_pairs, layers::RopePairs::kHalves);
  EXPECT_EQ(config.window_of(0), 0);
  EXPECT_TRUE(config.is_moe_layer(0));
  EXPECT_FALSE(config.gate_has_bias);

  for (const auto& [key, value, error] :
       {std::tuple<const char*, json, const char*>{"decoder_sparse_step", 2, "must be 1"},
        {"mlp_only_layers", {0}, "must be empty"},
        {"attention_bias", true, "true is not supported"},
        {"use_sliding_window", true, "true is not supported"}}) {
    json wrong = qwen3_moe_json();
    wrong[key] = value;
    EXPECT_CONTAINS(user_error([&] { check(wrong); }), fmt::format("{} {}", key, error));
  }
}

TEST(ModelConfig, GgufFilesAreRefusedWithWhatToUseInstead) {
  const TemporaryDirectory directory;
  const auto file = directory.write("model-Q4_K_M.gguf", "GGUF");
  for (const auto& path : {file, directory.path()}) {
    const std::string error = user_error([&] { read_model_config(path); });
    EXPECT_CONTAINS(error, "model-Q4_K_M.gguf: GGUF files are not read; give the directory of the");
  }

  // Beside a checkpoint they do not matter.
  directory.write("config.json", qwen3_moe_json().dump());
  EXPECT_EQ(read_model_config(directory.path()).family, Family::kQwen3Moe);
}

TEST(ModelConfig, ConvertedCheckpointsRunIfTheyHaveAScalePerRow) {
  json config = with("/quantization_config", json::parse(R"({"quant_method": "compressed-tensors",
      "config_groups": {"group_0": {"weights": {"num_bits": 8}}}})"));

  json& weights = config["quantization_config"]["config_groups"]["group_0"]["weights"];
  EXPECT_EQ(read(config).weight_bits, 8);
  EXPECT_TRUE(read(config).int8_weights);
  EXPECT_FALSE(read(config).fp8_weights);
  weights["strategy"] = "tensor";
  EXPECT_CONTAINS(user_error([&] { read(config); }), "strategy");
  weights["num_bits"] = 4;
  EXPECT_EQ(check(config).weight_bits, 4);
  EXPECT_CONTAINS(user_error([&] { read(config); }),
                  "compressed-tensors (4 bits) can be checked, not run yet");
  weights["num_bits"] = 3;
  EXPECT_CONTAINS(user_error([&] { check(config); }), "config_groups.group_0.weights.num_bits");
}

TEST(ModelConfig, ReadsQuantisationAndNoYarn) {
  const ModelConfig config = read_model_config(source_file("models/tiny-moe"));

  EXPECT_TRUE(config.fp8_weights);
  EXPECT_FALSE(config.yarn.has_value());
  EXPECT_EQ(config.vocab_size, 4096);
  EXPECT_EQ(config.gate.routed_scale, 2);
}

TEST(ModelConfig, SoftmaxScaleIsSquaredYarnFactorOverRootOfHeadSize) {
  const ModelConfig yarn = read_model_config(source_file("tests/goldens/ds-v2-lite-tiny"));
  const ModelConfig plain = read_model_config(source_file("models/tiny-moe"));

  const double m = 0.1 * 0.707 * std::log(40.0) + 1;
  EXPECT_FLOAT_EQ(yarn.softmax_scale(), static_cast<float>(m * m / std::sqrt(48.0)));
  EXPECT_FLOAT_EQ(plain.softmax_scale(), static_cast<float>(1 / std::sqrt(48.0)));
}

TEST(ModelConfig, GroupLimitedGreedyScoresGroupsByTheirBest) {
  json config = with("/topk_method", "group_limited_greedy");
  config["scoring_func"] = "softmax";
  config["norm_topk_prob"] = false;

  const ModelConfig read_back = read(config);

  EXPECT_EQ(read_back.gate.group_score, layers::GroupScore::kMax);
  EXPECT_EQ(read_back.gate.num_groups, 4);
  EXPECT_FALSE(read_back.gate_has_bias);
}

TEST(ModelConfig, GreedyIgnoresGroups) {
  EXPECT_EQ(read(with("/topk_method", "greedy")).gate.num_groups, 1);
}

TEST(ModelConfig, WholeFloatsAreIntegers) {
  EXPECT_EQ(read(with("/hidden_size", 192.0)).hidden_size, 192);
  EXPECT_CONTAINS(error_with("/hidden_size", 192.5), "hidden_size");
}

TEST(ModelConfig, ADenseModelNeedsNoMoeKeys) {
  json config = valid_json();
  for (const char* key : {"n_routed_experts", "moe_intermediate_size", "n_group", "topk_group",
                          "num_experts_per_tok", "n_shared_experts"})
    config.erase(key);

  const ModelConfig dense = read(config);

  EXPECT_EQ(dense.n_routed_experts, 0);
  EXPECT_FALSE(dense.is_moe_layer(2));
}

TEST(ModelConfig, EosComesFromGenerationConfigFirst) {
  const TemporaryDirectory directory;
  directory.write("config.json", with("/eos_token_id", 7).dump());
  EXPECT_EQ(read_model_config(directory.path()).eos_token_ids, std::vector<int32_t>{7});

  directory.write("generation_config.json", R"({"temperature": 0.5})");
  EXPECT_EQ(read_model_config(directory.path()).eos_token_ids, std::vector<int32_t>{7});

  directory.write("generation_config.json", R"({"eos_token_id": [5, 3]})");
  EXPECT_EQ(read_model_config(directory.path()).eos_token_ids, (std::vector<int32_t>{5, 3}));

  directory.write("generation_config.json", R"({"eos_token_id": 256})");
  const std::string error = user_error([&] { read_model_config(directory.path()); });
  EXPECT_CONTAINS(error, "generation_config.json: eos_token_id is 256");
}

TEST(ModelConfig, WhatIsNotImplementedIsRefusedByName) {
  EXPECT_CONTAINS(error_with("/model_type", "mixtral"),
                  "model_type 'mixtral' is not supported; supported: deepseek_v2, deepseek_v3");
  EXPECT_CONTAINS(error_with("/scoring_func", "tanh"), "scoring_func 'tanh'");
  EXPECT_CONTAINS(error_with("/topk_method", "random"), "topk_method 'random'");
  EXPECT_CONTAINS(error_with("/hidden_act", "gelu"), "hidden_act 'gelu'");
  EXPECT_CONTAINS(error_with("/attention_bias", true), "attention_bias");
  EXPECT_CONTAINS(error_with("/rope_scaling/type", "linear"), "rope_scaling.type 'linear'");
  EXPECT_CONTAINS(error_with("/quantization_config/quant_method", "awq"),
                  "quantization_config.quant_method 'awq' is not supported; supported: fp8");
  EXPECT_CONTAINS(error_with("/quantization_config/fmt", "e5m2"), "quantization_config.fmt");
  EXPECT_CONTAINS(error_with("/quantization_config/weight_block_size", {64, 128}),
                  "weight_block_size is not supported; supported: [128, 128]");
}

TEST(ModelConfig, SizesThatContradictEachOtherAreRefused) {
  EXPECT_CONTAINS(error_with("/n_group", 3), "n_group 3 does not divide n_routed_experts 16");
  EXPECT_CONTAINS(error_with("/n_group", 16), "n_group");
  EXPECT_CONTAINS(error_with("/topk_group", 5), "topk_group");
  EXPECT_CONTAINS(error_with("/num_experts_per_tok", 9), "num_experts_per_tok");
  EXPECT_CONTAINS(error_with("/qk_rope_head_dim", 31), "qk_rope_head_dim must be even");
  EXPECT_CONTAINS(error_with("/eos_token_id", -1), "eos_token_id");
}

TEST(ModelConfig, AMissingKeyIsNamed) {
  for (const char* key :
       {"model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "moe_intermediate_size", "num_experts_per_tok", "max_position_embeddings",
        "rms_norm_eps"}) {
    json config = valid_json();
    config.erase(key);
    EXPECT_CONTAINS(user_error([&] { read(config); }), std::string(key) + " is missing");
  }
}

// Every key that is read, with values of wrong types and absurd sizes: refused by the key's name.
TEST(ModelConfig, WrongTypesAndSizesAreRefusedByKey) {
  const std::vector<json> wrong = {-1, 1e300, INT64_MAX, UINT64_MAX, "9", json::object(), true};
  for (const char* key : {"vocab_size",
                          "hidden_size",
                          "intermediate_size",
                          "num_hidden_layers",
                          "num_attention_heads",
                          "q_lora_rank",
                          "kv_lora_rank",
                          "qk_nope_head_dim",
                          "qk_rope_head_dim",
                          "v_head_dim",
                          "n_routed_experts",
                          "moe_intermediate_size",
                          "num_experts_per_tok",
                          "n_group",
                          "topk_group",
                          "n_shared_experts",
                          "first_k_dense_replace",
                          "moe_layer_freq",
                          "max_position_embeddings",
                          "num_nextn_predict_layers",
                          "routed_scaling_factor",
                          "rope_theta",
                          "rope_scaling/factor",
                          "rope_scaling/original_max_position_embeddings",
                          "rope_scaling/beta_fast",
                          "rms_norm_eps",
                          "eos_token_id"}) {
    for (const json& value : wrong) {
      const std::string error = error_with(std::string("/") + key, value);
      EXPECT_CONTAINS(error, "config.json: ");
      std::string name = key;
      std::replace(name.begin(), name.end(), '/', '.');
      EXPECT_CONTAINS(error, name);
    }
  }
  EXPECT_CONTAINS(error_with("/rms_norm_eps", 0), "rms_norm_eps is 0");
  EXPECT_CONTAINS(error_with("/tie_word_embeddings", 1), "tie_word_embeddings");
  EXPECT_CONTAINS(error_with("/quantization_config", 5), "quantization_config");
}

TEST(ModelConfig, AFileThatIsNoJsonObjectIsOneError) {
  const TemporaryDirectory directory;
  EXPECT_CONTAINS(user_error([&] { read_model_config(directory.path()); }), "config.json");
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("nul"),
        std::string("{\"a\":\"\xff\"}"), std::string("{\"vocab_size\": 1e999}"),
        std::string(100000, '['), "{\"a\":" + std::string(100000, '{')}) {
    directory.write("config.json", text);
    EXPECT_CONTAINS(user_error([&] { read_model_config(directory.path()); }), "config.json");
  }
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  directory.write("config.json", "{\"hidden_size\":" + deep + "}");
  EXPECT_CONTAINS(user_error([&] { read_model_config(directory.path()); }), "nested deeper");
  std::filesystem::remove(directory.path() / "config.json");
  std::filesystem::create_directory(directory.path() / "config.json");
  EXPECT_CONTAINS(user_error([&] { read_model_config(directory.path()); }), "is a directory");
}

TEST(ModelConfig, AllCheckpointsOfTheRepositoryAreRead) {
  for (const char* name : kCheckpoints) EXPECT_NO_THROW(read_model_config(source_file(name)));
}

}  // namespace
}  // namespace troupe::model
