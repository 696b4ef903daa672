#include "launcher/check.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"

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
  EXPECT_TRUE(contains(report, "    0     0          0-7          0-3  ")) << report;
  EXPECT_TRUE(contains(report, "    3     3          0-7        12-15  ")) << report;
}

TEST(CheckReport, SplitsHeadsOverTensorParallelRanks) {
  const std::string report = check_report(
      tiny({"parallel_config.attn_tp_size=2", "parallel_config.moe_tp_size=4"}), false);

  EXPECT_TRUE(contains(report, "attention DP 2 x TP 2 = experts EP 1 x TP 4")) << report;
  EXPECT_TRUE(contains(report, "    1     0          4-7         0-15  ")) << report;
  EXPECT_TRUE(contains(report, "    2     1          0-3         0-15  ")) << report;
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

  EXPECT_TRUE(contains(report, "\n    3     3 ")) << report;
  EXPECT_TRUE(contains(report, "\n  ...\n   28    28 ")) << report;
  EXPECT_FALSE(contains(report, "\n    4     4 ")) << report;
}

TEST(CheckReport, ListsWhatIsIgnoredAndWhatRunRefuses) {
  const std::string report = check_report(
      tiny({"model_config.exe_mode=ge_graph", "model_config.platform_version=950"}), false);

  EXPECT_TRUE(contains(report, "model_config.platform_version has no effect on a CPU")) << report;
  EXPECT_TRUE(contains(report, "run cannot do yet:\n  model_config.exe_mode: graph")) << report;
  EXPECT_FALSE(contains(check_report(tiny(), false), "run cannot do yet"));
}

TEST(CheckReport, NeedsNoWeightsForRandomOnes) {
  const auto directory = std::filesystem::path(testing::TempDir()) / "troupe-check-config-only";
  std::filesystem::create_directories(directory);
  std::filesystem::copy_file(kSource / "models/tiny-moe/config.json", directory / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  Config config = tiny();
  config.model.model_path = directory;

  EXPECT_NE(error_of(config, false), "accepted");  // no checkpoint there
  config.model.with_ckpt = false;
  EXPECT_EQ(error_of(config, false), "accepted");
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
