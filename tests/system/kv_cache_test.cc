// What the KV cache keeps and for how long: int8 rows, windows that are left behind, and
// checkpoints with scales of their own. The same bits however a sequence is cut, placed and paged.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/system/golden.h"
#include "tests/system/model_copy.h"

namespace troupe::system_tests {
namespace {

std::vector<Ids> stories() {
  std::vector<Ids> stories;
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  for (const json& c : golden["cases"]) {
    Ids& story = stories.emplace_back(c["prompt_ids"]);
    const Ids continuation = c["continuation_ids"];
    story.insert(story.end(), continuation.begin(), continuation.end());
  }
  return stories;
}

double perplexity(const std::filesystem::path& model, const std::string& kv_cache_format) {
  json config = configuration(model, 2, "bfloat16");
  config["runtime_config"]["kv_cache_format"] = kv_cache_format;
  config["scheduler_config"]["batch_size"] = 8;
  const model::TemporaryDirectory files;
  auto arguments = command_line("score", config, stories(), files);
  const std::filesystem::path report = files.path() / "report.json";
  arguments.insert(arguments.end(), {"--json", report.string()});
  const Ended ended = run_troupe(arguments);
  EXPECT_EQ(ended.status, 0) << ended.err;
  return json::parse(model::read_file(report))["perplexity"];
}

TEST(KvCacheFormat, Int8HardlyMovesPerplexity) {
  EXPECT_NEAR(perplexity(tiny_moe(), "int8") / perplexity(tiny_moe(), "dtype"), 1, 0.01);
}

// Numbers of a run that change how rows are written, read and shared, but not what they are.
std::vector<json> ways_to_run() {
  const json small{{"block_size", 3}, {"max_prefill_tokens", 5}, {"batch_size", 4}};
  return {
      {{"scheduler_config", small}},
      {{"scheduler_config", small}, {"runtime_config", {{"threads_per_rank", 2}}}},
      {{"scheduler_config", small}, {"parallel_config", {{"world_size", 2}, {"attn_tp_size", 2}}}},
      {{"parallel_config", {{"world_size", 4}, {"attn_tp_size", 2}}}}};
}

void expect_same_bits(json config, const std::vector<Ids>& prompts) {
  config["scheduler_config"]["max_new_tokens"] = 24;
  const Dump expected(config, prompts, "logits");
  const std::vector<Ids> tokens = output_ids(generate(config, prompts));
  for (const json& way : ways_to_run()) {
    SCOPED_TRACE(way.dump());
    json changed = config;
    changed.merge_patch(way);
    const Dump found(changed, prompts, "logits");
    for (const auto& [name, tensor] : expected.tensors())
      EXPECT_TRUE(same_bytes(tensor, found.tensor(name))) << name;
    EXPECT_EQ(output_ids(generate(changed, prompts)), tokens);
  }
}

TEST(KvCacheFormat, Int8HasTheSameBitsHoweverItIsRun) {
  json config = configuration(tiny_moe(), 1, "bfloat16");
  config["runtime_config"]["kv_cache_format"] = "int8";
  std::vector<Ids> prompts = stories();
  prompts.resize(3);

  expect_same_bits(config, prompts);

  config["scheduler_config"]["max_new_tokens"] = 24;
  const std::vector<Ids> tokens = output_ids(generate(config, prompts));
  for (const int next_n : {1, 3}) {
    config["model_config"]["next_n"] = next_n;
    EXPECT_EQ(output_ids(generate(config, prompts)), tokens) << next_n;
  }
}

// 16 positions are seen in every other layer. In blocks of 128 nothing is ever given back; in
// blocks of 3 most of a prompt is.
TEST(SlidingWindow, HasTheSameBitsWhenBlocksAreGivenBack) {
  std::vector<Ids> prompts = Golden("gpt-oss-tiny").prompt_tokens();
  Ids longest;
  for (int i = 0; i < 120; ++i) longest.push_back(3 + i * 37 % 300);
  prompts.push_back(longest);
  prompts.push_back(longest);
  prompts.back().back() = 7;  // the first 117 are shared
  for (const char* format : {"dtype", "int8"}) {
    SCOPED_TRACE(format);
    json config = configuration(golden_directory("gpt-oss-tiny"), 1, "bfloat16");
    config["runtime_config"]["kv_cache_format"] = format;

    expect_same_bits(config, prompts);
  }
}

TEST(SlidingWindow, NeedsBlocksForTheWindowAlone) {
  json config = configuration(golden_directory("gpt-oss-tiny"), 1, "bfloat16");
  config["scheduler_config"] = {
      {"block_size", 4}, {"max_prefill_tokens", 8}, {"max_new_tokens", 100}};
  Ids prompt;
  for (int i = 0; i < 300; ++i) prompt.push_back(3 + i * 37 % 300);

  const json report = generate(config, {prompt});

  // 399 positions have rows: 100 blocks of full layers; 16 - 1 + 8 positions of the others lie in
  // at most 7 blocks.
  const int blocks = report["metrics"]["peak_kv_blocks"];
  EXPECT_GE(blocks, 100 + 4);
  EXPECT_LE(blocks, 100 + 7);
}

// ---- checkpoints with scales --------------------------------------------------------------------

Ended convert(const std::filesystem::path& output, const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{"--log-level", "error", "convert",      "--input", tiny_moe(),
                                     "--output",    output,  "--quant-mode", "w8a8c8"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return run_troupe(arguments);
}

std::string calibration_file() { return model::source_file("configs/calibration.txt").string(); }

TEST(W8A8C8, KeepsPerplexityWithinOnePercentOfBf16) {
  const model::TemporaryDirectory directory;
  const std::filesystem::path output = directory.path() / "c8";
  const Ended ended = convert(output, {"--calibration-file", calibration_file()});
  ASSERT_EQ(ended.status, 0) << ended.err;
  const json config = json::parse(model::read_file(output / "config.json"));
  EXPECT_EQ(config["quantization_config"]["kv_cache_scheme"]["num_bits"], 8);

  const double c8 = perplexity(output, "auto"), c16 = perplexity(output, "dtype");

  EXPECT_NE(c8, c16);
  EXPECT_NEAR(c8 / perplexity(tiny_moe(), "dtype"), 1, 0.01);

  json run = configuration(output, 1, "bfloat16");
  run["scheduler_config"]["max_new_tokens"] = 24;
  std::vector<Ids> prompts = stories();
  prompts.resize(2);
  const std::vector<Ids> tokens = output_ids(generate(run, prompts));
  run["model_config"]["next_n"] = 2;
  run["parallel_config"] = {{"world_size", 2}, {"attn_tp_size", 2}};
  EXPECT_EQ(output_ids(generate(run, prompts)), tokens);
}

// A scale is the greatest magnitude over 127: rows of a cache with it, or with twice it.
TEST(W8A8C8, ScalesOfTheCheckpointAreUsed) {
  const model::TemporaryDirectory directory;
  const std::filesystem::path output = directory.path() / "c8";
  ASSERT_EQ(convert(output, {"--calibration-file", calibration_file()}).status, 0);
  ModelCopy coarse(output);
  for (auto& [name, tensor] : coarse.tensors()) {
    if (!name.ends_with("ckv_scale")) continue;
    EXPECT_EQ(tensor.shape, std::vector<int64_t>{1});
    const float wide = 16 * tensor.at<float>(0);
    tensor.bytes.assign(reinterpret_cast<const char*>(&wide), sizeof wide);
  }

  EXPECT_GT(std::abs(std::log(perplexity(coarse.write(), "auto") / perplexity(output, "dtype"))),
            2 * std::abs(std::log(perplexity(output, "auto") / perplexity(output, "dtype"))));
}

TEST(W8A8C8, SaysWhatIsMissing) {
  const model::TemporaryDirectory directory;
  const std::filesystem::path output = directory.path() / "c8";

  const Ended without = convert(output);
  EXPECT_EQ(without.status, 2);
  EXPECT_NE(without.err.find("give --calibration-file FILE"), std::string::npos) << without.err;
  EXPECT_FALSE(std::filesystem::exists(output));

  const Ended no_file = convert(output, {"--calibration-file", "no-such-file.txt"});
  EXPECT_EQ(no_file.status, 2);
  EXPECT_NE(no_file.err.find("no-such-file.txt"), std::string::npos) << no_file.err;

  ASSERT_EQ(convert(output, {"--calibration-file", calibration_file()}).status, 0);
  ModelCopy broken(output);
  const float none = 0;
  broken.tensors()
      .at("model.layers.0.self_attn.ckv_scale")
      .bytes.assign(reinterpret_cast<const char*>(&none), sizeof none);
  const model::TemporaryDirectory files;
  const json config = configuration(broken.write(), 1, "bfloat16");
  const Ended zero = run_troupe(command_line("score", config, {{1, 2}}, files));
  EXPECT_EQ(zero.status, 2);
  EXPECT_NE(zero.err.find("layers.0.self_attn.ckv_scale' holds 0; scales are positive"),
            std::string::npos)
      << zero.err;
}

}  // namespace
}  // namespace troupe::system_tests
