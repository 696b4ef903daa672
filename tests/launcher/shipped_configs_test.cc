// The files of configs/: all of them can be checked, and nothing in them is refused to run.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/check.h"
#include "launcher/config_keys.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

std::vector<std::string> shipped_configs() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(model::source_file("configs")))
    if (entry.path().extension() == ".yaml") names.push_back(entry.path().stem());
  std::ranges::sort(names);
  return names;
}

class ShippedConfig : public testing::TestWithParam<std::string> {
 protected:
  // As read from the repository's directory.
  Config config() const {
    Config config = read_config(model::source_file("configs/" + GetParam() + ".yaml"), {});
    config.model.model_path = model::source_file(config.model.model_path);
    return config;
  }
};

TEST_P(ShippedConfig, IsAcceptedByCheckAndCanRun) {
  const std::string report = check_report(config(), false);

  EXPECT_EQ(report.find("run cannot do yet"), std::string::npos) << report;
  EXPECT_TRUE(not_runnable(config()).empty());
}

TEST_P(ShippedConfig, NamesItsNumberOfRanks) {
  const size_t at = GetParam().find("_rank_");
  if (at == std::string::npos) return;  // tiny_moe: the one to begin with

  EXPECT_EQ(std::stoi(GetParam().substr(at + 6)), config().parallel.world_size);
}

INSTANTIATE_TEST_SUITE_P(Of, ShippedConfig, testing::ValuesIn(shipped_configs()),
                         [](const auto& test) { return test.param; });

// What the layouts are about, as their names say.
TEST(ShippedConfigs, SpreadTheExpertsOfTheirModels) {
  const auto experts_line = [](const std::string& name) {
    Config config = read_config(model::source_file("configs/" + name + ".yaml"), {});
    config.model.model_path = model::source_file(config.model.model_path);
    const std::string report = check_report(config, false);
    const size_t begin = report.find("layout ");
    return report.substr(begin, report.find('\n', begin) - begin);
  };
  EXPECT_EQ(experts_line("deepseek_r1_rank_128_128ep"),
            "layout   128 ranks = attention DP 128 x TP 1 = experts EP 128 x TP 1");
  EXPECT_EQ(experts_line("kimi_k2_rank_128_128ep"),
            "layout   128 ranks = attention DP 128 x TP 1 = experts EP 128 x TP 1");
  EXPECT_EQ(experts_line("deepseek_r1_rank_16_16tp"),
            "layout   16 ranks = attention DP 1 x TP 16 = experts EP 1 x TP 16");
  EXPECT_EQ(experts_line("gpt_oss_120b_rank_8_8tp"),
            "layout   8 ranks = attention DP 1 x TP 8 = experts EP 1 x TP 8");
}

}  // namespace
}  // namespace troupe::launcher
