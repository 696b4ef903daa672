// recipes/: the configurations of a real cluster project, unchanged; all of them can be checked.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "launcher/check.h"
#include "launcher/config_keys.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

const std::filesystem::path kRecipes = model::source_file("tests/launcher/recipes");

std::vector<std::string> recipes() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(kRecipes))
    if (entry.path().extension() == ".yaml")
      names.push_back(std::filesystem::relative(entry.path(), kRecipes).string());
  std::ranges::sort(names);
  return names;
}

// The shapes of the model that the recipe is for: a directory of configs/shapes.
std::string shapes_of(const std::string& recipe) {
  const auto names = [&](const char* part) { return recipe.find(part) != std::string::npos; };
  if (names("k2")) return "kimi-k2";
  if (names("gpt_oss_20b")) return "gpt-oss-20b";
  if (names("gpt_oss")) return "gpt-oss-120b";
  if (names("qwen3")) return "qwen3-235b-a22b";
  return "deepseek-r1";
}

class Recipe : public testing::TestWithParam<std::string> {
 protected:
  Config config() const {
    Config config = read_config(kRecipes / GetParam(), {});
    config.model.model_path = model::source_file("configs/shapes/" + shapes_of(GetParam()));
    return config;
  }
};

TEST_P(Recipe, IsAcceptedByCheck) {
  const Config config = this->config();

  const std::string report = check_report(config, false);

  EXPECT_NE(report.find("layout   " + std::to_string(config.parallel.world_size) + " ranks = "),
            std::string::npos)
      << report;
}

INSTANTIATE_TEST_SUITE_P(Of, Recipe, testing::ValuesIn(recipes()), [](const auto& test) {
  std::string name = test.param.substr(0, test.param.rfind('.'));
  std::ranges::replace_if(
      name, [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
});

TEST(Recipes, AreAllThatTheProjectShipsForTheseFamilies) { EXPECT_EQ(recipes().size(), 28u); }

TEST(Recipes, FillTheStruct) {
  const Config config =
      read_config(kRecipes / "deepseek_r1/decode_r1_rank_128_128ep_a8w8c8_mtp_longseq.yaml", {});

  EXPECT_EQ(config.model.model_name, "deepseek_r1");
  EXPECT_EQ(config.model.next_n, 3);
  EXPECT_EQ(config.model.exe_mode, ExeMode::kGraph);
  EXPECT_FALSE(config.model.force_eplb);
  EXPECT_EQ(config.model.moe_chunk_max_len, 512);
  EXPECT_EQ(config.data.dataset, "InfiniteBench");
  EXPECT_EQ(config.data.input_truncated_len, 65536);
  EXPECT_EQ(config.parallel.world_size, 128);
  EXPECT_EQ(config.parallel.dense_tp_size, 4);
  EXPECT_EQ(config.parallel.lmhead_tp_size, 16);
  EXPECT_EQ(config.parallel.moe_ep_size(), 128);
  EXPECT_EQ(config.scheduler.batch_size, 256);
  EXPECT_EQ(config.scheduler.max_prefill_tokens, 65536);
  EXPECT_TRUE(config.model.enable_multi_streams);
  EXPECT_FALSE(config.model.enable_superkernel);
  EXPECT_EQ(config.notes.size(), 4u);  // graph, cache compile, MLA prolog, multi streams
  EXPECT_TRUE(config.notes[0].starts_with("model_config.exe_mode: graph: "));
  EXPECT_EQ(config.notes[1],
            "model_config.enable_cache_compile has no effect on a CPU: nothing is compiled while a "
            "model runs");
}

TEST(Recipes, FillTheStructWithSampling) {
  const Config config =
      read_config(kRecipes / "deepseek_r1/ci/decode_r1_rank_16_16ep_a8w8c8_mtp.yaml", {});

  EXPECT_EQ(config.data.temperature, 0.6);
  EXPECT_EQ(config.data.top_p, 0.95);
  EXPECT_EQ(config.data.top_k, 10);
}

}  // namespace
}  // namespace troupe::launcher
