#include "launcher/check.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/rank_memory.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

const std::filesystem::path kSource = TROUPE_SOURCE_DIR;

Config tiny(std::vector<std::string> overrides = {}) {
  overrides.push_back("model_config.model_path=" + (kSource / "models/tiny-moe").string());
  return read_config(kSource / "configs/tiny_moe.yaml", overrides);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string error_of(const Config& config, bool fit) {
  try {
    check_report(config, fit);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(CheckReport, ShowsWhichRankHoldsWhichExperts) {
  const std::string report = check_report(tiny(), false);

  EXPECT_TRUE(contains(report, "layout   4 ranks = attention DP 4 x TP 1 = experts EP 4 x TP 1"));
  EXPECT_TRUE(contains(report, "\n    0    0      0-7      0-3 ")) << report;
  EXPECT_TRUE(contains(report, "\n    3    3      0-7    12-15 ")) << report;
  EXPECT_TRUE(contains(report, "\nep             4  [0-3] ")) << report;
}

TEST(CheckReport, DrawsBarsAroundTheRanksThatCutAStage) {
  const std::string report = check_report(
      tiny({"parallel_config.attn_tp_size=2", "parallel_config.dense_tp_size=4"}), false);

  EXPECT_TRUE(contains(report, "\nsequences     |  DP 0      DP 0   |  DP 1      DP 1   |\n"))
      << report;
  EXPECT_TRUE(contains(report, "\nheads         |   0-3       4-7   |   0-3       4-7   |\n"));
  EXPECT_TRUE(contains(report, "\ndense MLP     |   1/4       2/4       3/4       4/4   |\n"));
  EXPECT_TRUE(contains(report, "\nexperts       |   0-3   |   4-7   |  8-11   |  12-15  |\n"));
}

TEST(CheckReport, DrawsTheFirstRanksOfMany) {
  const std::string report = check_report(
      tiny({"parallel_config.world_size=16", "parallel_config.dense_tp_size=16"}), false);

  EXPECT_TRUE(contains(report, "|    7    | ...\n")) << report;
  EXPECT_TRUE(contains(report, "  8/16     ...\n"));
}

TEST(CheckReport, SplitsHeadsOverTensorParallelRanks) {
  const std::string report = check_report(
      tiny({"parallel_config.attn_tp_size=2", "parallel_config.moe_tp_size=4"}), false);

  EXPECT_TRUE(contains(report, "attention DP 2 x TP 2 = experts EP 1 x TP 4")) << report;
  EXPECT_TRUE(contains(report, "\n    1    0      4-7     0-15 ")) << report;
  EXPECT_TRUE(contains(report, "\n    2    1      0-3     0-15 ")) << report;
  EXPECT_TRUE(contains(report, "\nattn_tp        2  [0-1] [2-3] ")) << report;
  EXPECT_TRUE(contains(report, "4 of 8 heads\n")) << report;
}

TEST(CheckReport, SaysWhatALayerWeighs) {
  const auto layers = [](const std::vector<std::string>& overrides) {
    const std::string report = check_report(tiny(overrides), false);
    const size_t begin = report.find("\nlayers ");
    return report.substr(begin, report.find('\n', begin + 1) - begin);
  };
  // The dense layer 0, five MoE layers, and the MTP module's layer 6, which is one of them too.
  EXPECT_TRUE(contains(layers({}), ": 0: ")) << layers({});
  EXPECT_TRUE(contains(layers({}), ", 1-6: "));
  EXPECT_TRUE(contains(layers({"model_config.next_n=0"}), ", 1-5: "));
}

TEST(CheckReport, CountsTheKvCacheInWholeBlocks) {
  // 6 layers and the MTP module, 64 + 16 values a row, 2 sequences a rank of
  // 100 + 64 + 2 positions: 3 blocks of 64 each.
  const std::string report = check_report(
      tiny({"scheduler_config.batch_size=8", "scheduler_config.block_size=64",
            "scheduler_config.max_new_tokens=64", "data_config.input_truncated_len=100"}),
      false);
  const size_t bytes = size_t{7} * (2 * 3 * 64) * (64 + 16) * 2;

  EXPECT_TRUE(contains(report, fmt::format("{:.1f} KiB", bytes / 1024.0))) << report;
  EXPECT_TRUE(contains(report, "a prompt of 100 (input_truncated_len)")) << report;
}

TEST(CheckReport, LeavesOutTheMiddleOfALargeWorld) {
  // 16 experts on 32 ranks: two ranks share each.
  const std::string report =
      check_report(tiny({"parallel_config.world_size=32", "parallel_config.moe_tp_size=2"}), false);

  EXPECT_TRUE(contains(report, "\n    3    3 ")) << report;
  EXPECT_TRUE(contains(report, "\n  ...\n   28   28 ")) << report;
  EXPECT_FALSE(contains(report, "\n    4    4 ")) << report;
}

TEST(CheckReport, ListsWhatIsIgnoredAndWhatRunRefuses) {
  const std::string report =
      check_report(tiny({"model_config.exe_mode=ge_graph", "model_config.platform_version=950",
                         "model_config.custom_params.micro_batch_mode=1"}),
                   false);

  EXPECT_TRUE(contains(report, "model_config.platform_version has no effect on a CPU")) << report;
  EXPECT_TRUE(contains(report, "model_config.exe_mode: graph: the operations of a decode step"))
      << report;
  EXPECT_TRUE(
      contains(report, "run cannot do yet:\n  model_config.custom_params.micro_batch_mode: 1"))
      << report;
  EXPECT_FALSE(contains(check_report(tiny(), false), "run cannot do yet"));
}

TEST(CheckReport, SaysWhatEachCollectiveMoves) {
  EXPECT_TRUE(
      contains(check_report(tiny({"parallel_config.world_size=1"}), false), "traffic  none"));

  // 6 layers; 3 other ranks get a row of 256 values, and a row of 4 byte sums each.
  const std::string report = check_report(tiny({"parallel_config.attn_tp_size=4"}), false);
  const auto row = [](const char* what, const char* axis, int layers, int bytes) {
    return fmt::format("\n{:<15} {:<36} {:<10} {:>5} {:>6} {:>11} {:>11}\n", "attention", what,
                       axis, 4, layers, bytes, layers * bytes);
  };
  EXPECT_TRUE(contains(report, row("all_gather of normed rows", "attn_tp", 6, 3 * 256 * 2)))
      << report;
  EXPECT_TRUE(contains(report, row("reduce_scatter of o_proj, fp32", "o_proj_tp", 6, 3 * 256 * 4)))
      << report;
}

TEST(CheckReport, NeedsNoCheckpointButWhatIsThereMustFit) {
  const auto directory = model::scratch_directory().path() / "config-only";
  std::filesystem::create_directories(directory);
  std::filesystem::copy_file(kSource / "models/tiny-moe/config.json", directory / "config.json");
  Config config = tiny();
  config.model.model_path = directory;

  EXPECT_TRUE(contains(check_report(config, false), "no checkpoint in " + directory.string()));
  std::ofstream(directory / "model.safetensors.index.json") << R"({"weight_map": {}})";
  EXPECT_TRUE(contains(error_of(config, false), "is missing"));
  config.model.with_ckpt = false;
  EXPECT_EQ(error_of(config, false), "accepted");
}

std::filesystem::path model_directory(const std::string& name, const std::string& config) {
  const auto directory = model::scratch_directory().path() / name;
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << config;
  return directory;
}

std::filesystem::path gpt_oss(int num_layers) {
  return model_directory("gpt-oss", fmt::format(R"({{"model_type": "gpt_oss", "vocab_size": 201088,
      "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": {},
      "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
      "num_local_experts": 128, "experts_per_token": 4, "attention_bias": true,
      "sliding_window": 128, "swiglu_limit": 7.0, "max_position_embeddings": 131072,
      "rms_norm_eps": 1e-05, "rope_theta": 150000, "eos_token_id": 200002,
      "rope_scaling": {{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                       "original_max_position_embeddings": 4096, "truncate": false}},
      "quantization_config": {{"quant_method": "mxfp4"}}}})",
                                                num_layers));
}

TEST(CheckReport, ShowsWhichRankHoldsWhichKeyAndValueHeads) {
  Config config = tiny({"model_config.next_n=0", "parallel_config.world_size=16",
                        "parallel_config.attn_tp_size=16", "parallel_config.moe_tp_size=8"});
  config.model.model_path = gpt_oss(36);

  const std::string report = check_report(config, false);

  EXPECT_TRUE(contains(report, "4 of 64 heads, 1 of 8 KV heads")) << report;
  EXPECT_TRUE(contains(report, "\n    3    0    12-15        1     0-63 ")) << report;
  EXPECT_FALSE(contains(report, "run cannot do yet")) << report;
}

// 36 x 16 experts a rank of 3 x 2880 x 2880 weights, with fp32 biases of gate and up.
TEST(CheckReport, GptOssExpertsAreCountedAsTheyAreHeld) {
  Config config = tiny({"model_config.next_n=0", "parallel_config.world_size=8",
                        "runtime_config.weight_format=bf16"});
  config.model.model_path = gpt_oss(36);
  const double experts = 36.0 * 16 * (3.0 * 2880 * 2880 * 2 + 2 * 2880 * 4);

  EXPECT_TRUE(
      contains(check_report(config, false), fmt::format(" {:.2f} GiB", experts / (1 << 30))))
      << check_report(config, false);
}

// 17 bytes for 32 weights; leaves of 180 inputs cut groups, each part has a scale of its own.
TEST(CheckReport, GptOssExpertsStayMxfp4) {
  Config config = tiny({"model_config.next_n=0", "parallel_config.world_size=8"});
  config.model.model_path = gpt_oss(36);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const auto limits = scheduler_limits(config, model, largest_load(config, model).load, 0);

  const LaunchMemory memory =
      launch_memory(config, model, model::ParallelLayout(config.parallel, model), limits);

  const double weights = 36.0 * 16 * 3 * 2880 * 2880;
  EXPECT_NEAR(static_cast<double>(memory.ranks[0].private_weights) / weights, 17.0 / 32, 0.06);
}

TEST(CheckReport, QuantisedCheckpointsAreCountedWithEightBits) {
  std::ifstream file(kSource / "models/tiny-moe/config.json");
  nlohmann::json json = nlohmann::json::parse(file);
  Config config = tiny({"model_config.with_ckpt=False"});
  const std::string fp8 = check_report(config, false);
  json["quantization_config"] = nlohmann::json::parse(
      R"({"quant_method": "compressed-tensors", "format": "int-quantized",
          "config_groups": {"group_0": {"weights": {"num_bits": 4}}}})");
  config.model.model_path = model_directory("int4", json.dump());

  const std::string int4 = check_report(config, false);

  EXPECT_TRUE(contains(int4, "compressed-tensors (4 bits) can be checked, not run yet")) << int4;
  const auto rank_0 = [](const std::string& report) {
    return report.substr(report.find("\n    0 "), 100);
  };
  EXPECT_EQ(rank_0(int4), rank_0(fp8));
}

TEST(CheckReport, AWorldThatDoesNotSuitTheModelIsAnError) {
  EXPECT_TRUE(contains(error_of(tiny({"parallel_config.world_size=3"}), false), "16 experts"));
}

TEST(CheckReport, NotFittingIsAnErrorOnlyWhenAskedFor) {
  const Config device = tiny({"runtime_config.device_memory_gb=0.001"});
  EXPECT_TRUE(contains(check_report(device, false), "DOES NOT FIT"));
  EXPECT_TRUE(contains(error_of(device, true), "runtime_config.device_memory_gb is 0.001 GiB"));

  // 65536 sequences of 2048 positions: 150 GB of KV cache.
  const Config machine =
      tiny({"scheduler_config.batch_size=65536", "data_config.input_truncated_len=1984",
            "scheduler_config.mem_fraction_static=0.01"});
  EXPECT_TRUE(contains(check_report(machine, false), "DOES NOT FIT"));
  EXPECT_TRUE(contains(error_of(machine, true), "4 ranks need "));

  EXPECT_EQ(error_of(tiny(), true), "accepted");
}

}  // namespace
}  // namespace troupe::launcher
