#include "launcher/config_text.h"

#include <gtest/gtest.h>

#include "launcher/config_keys.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

// Reads what config_text() writes; every key must come back.
void expect_round_trip(const Config& config) {
  const model::TemporaryDirectory directory;
  const std::string file = directory.write("effective.yaml", config_text(config));

  const Config again = read_config(file, {});

  for (const Key& key : known_keys())
    EXPECT_EQ(value_text(key, again), value_text(key, config)) << key.path();
}

TEST(ConfigText, IsAFileThatSaysTheSame) {
  expect_round_trip(read_config(
      TROUPE_SOURCE_DIR "/configs/tiny_moe.yaml",
      {"data_config.temperature=0.7", "parallel_config.world_size=8",
       "model_config.custom_params.moe_chunk_max_len=77", "runtime_config.device_memory_gb=1.5",
       "model_config.next_n=auto", "data_config.seed=12345678901"}));
}

TEST(ConfigText, KeepsTextWithAnythingInIt) {
  Config config = read_config(TROUPE_SOURCE_DIR "/configs/tiny_moe.yaml", {});
  config.model.model_name = "a: \"b\" # c\\";

  expect_round_trip(config);
}

}  // namespace
}  // namespace troupe::launcher
