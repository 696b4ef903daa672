// A prompt of 32768 tokens is read in pieces: memory grows by its KV rows and by nothing else.
#include <gtest/gtest.h>

#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

constexpr int kLayers = 2, kLatent = 32, kRope = 16;

// Two layers of one head: what takes time is attention, whose work grows with the square.
std::string tiny_shape(const model::TemporaryDirectory& directory) {
  json config = json::parse(model::read_file(tiny_moe() / "config.json"));
  config.erase("quantization_config");
  config.update({{"hidden_size", 64},
                 {"intermediate_size", 96},
                 {"moe_intermediate_size", 32},
                 {"num_hidden_layers", kLayers},
                 {"num_attention_heads", 1},
                 {"num_key_value_heads", 1},
                 {"kv_lora_rank", kLatent},
                 {"qk_rope_head_dim", kRope},
                 {"qk_nope_head_dim", 16},
                 {"v_head_dim", 16},
                 {"q_lora_rank", 32},
                 {"vocab_size", 128},
                 {"max_position_embeddings", 65536},
                 {"num_nextn_predict_layers", 0}});
  directory.write("config.json", config.dump());
  return directory.path();
}

TEST(LongPrompt, NeedsMemoryForItsKvRowsAlone) {
  const model::TemporaryDirectory directory;
  json config = configuration(tiny_shape(directory), 1, "bfloat16");
  config["model_config"]["with_ckpt"] = false;
  config["scheduler_config"] = {{"max_new_tokens", 2}, {"max_prefill_tokens", 512}};
  const auto run = [&](int tokens) {
    Ids prompt(tokens);
    for (int i = 0; i < tokens; ++i) prompt[i] = 3 + i * 7919 % 97;
    return generate(config, {prompt});
  };
  const auto megabytes = [](const json& report) {
    return report["metrics"]["ranks"][0]["rss_mb"].get<double>();
  };

  const json shorter = run(2048), longer = run(32768);

  EXPECT_EQ(longer["outputs"][0]["output_ids"].size(), 2u);
  EXPECT_EQ(longer["metrics"]["peak_kv_blocks"], 32768 / 128 + 1);
  const double kv_rows = (32768 - 2048) * kLayers * (kLatent + kRope) * 2 / 1048576.0;
  // Scores of one piece against all positions alone would be 64 MB.
  EXPECT_NEAR(megabytes(longer) - megabytes(shorter), kv_rows, 3);
}

}  // namespace
}  // namespace troupe::system_tests
