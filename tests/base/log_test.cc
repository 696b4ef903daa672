#include "base/log.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

class LogTest : public testing::Test {
 protected:
  LogTest() : directory_(fs::temp_directory_path() / fmt::format("troupe-log-{}", ::getpid())) {}
  ~LogTest() override {
    start_log({}, 0);
    fs::remove_all(directory_);
  }

  std::vector<std::string> lines(const std::string& file) const {
    std::vector<std::string> result;
    std::ifstream stream(directory_ / file);
    for (std::string line; std::getline(stream, line);) result.push_back(line);
    return result;
  }

  fs::path directory_;
};

TEST_F(LogTest, WritesAnObjectForEachLineWithWhatItIsAbout) {
  start_log({.format = "json", .subsystems = {}, .directory = directory_}, 3);
  log(LogLevel::kWarn, "rank", "a \"quoted\"\nline", {.actor = "moe", .step = 7, .request = 0});
  log(LogLevel::kInfo, "launcher", "no more");

  const auto text = lines("rank_3.log");
  ASSERT_EQ(text.size(), 2);
  nlohmann::json first = nlohmann::json::parse(text[0]);
  EXPECT_GT(first.at("ts").get<double>(), 1.7e9);
  first.erase("ts");
  EXPECT_EQ(first, nlohmann::json({{"level", "warning"},
                                   {"rank", 3},
                                   {"subsystem", "rank"},
                                   {"actor", "moe"},
                                   {"step", 7},
                                   {"request", 0},
                                   {"text", "a \"quoted\"\nline"}}));
  const nlohmann::json second = nlohmann::json::parse(text[1]);
  EXPECT_FALSE(second.contains("step") || second.contains("actor") || second.contains("request"));
}

TEST_F(LogTest, LeavesOutWhatIsBelowTheLevelOrOfAnotherSubsystem) {
  start_log({.level = "info", .subsystems = {"rank"}, .directory = directory_}, 0);
  log(LogLevel::kDebug, "rank", "too low");
  log(LogLevel::kError, "scheduler", "not asked for");
  log(LogLevel::kInfo, "rank", "said", {.step = 2});

  const auto text = lines("rank_0.log");
  ASSERT_EQ(text.size(), 1);
  EXPECT_NE(text[0].find("info rank [step 2] said"), std::string::npos) << text[0];
  EXPECT_FALSE(logs(LogLevel::kError, "launcher"));
  EXPECT_TRUE(logs(LogLevel::kError, "rank"));
}

TEST_F(LogTest, OfARankWithoutADirectoryIsSilent) {
  start_log({}, 1);

  EXPECT_FALSE(logs(LogLevel::kError, "rank"));
}

TEST_F(LogTest, NamesAFileThatCannotBeMade) {
  std::ofstream(directory_) << "a file";
  try {
    start_log({.subsystems = {}, .directory = directory_}, 0);
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find((directory_ / "rank_0.log").string()),
              std::string::npos);
  }
}

TEST_F(LogTest, GoesToRanksAsArguments) {
  const LogOptions options{
      .level = "debug", .format = "json", .subsystems = {"rank", "launcher"}, .directory = "logs"};

  EXPECT_EQ(options.arguments(),
            (std::vector<std::string>{"--log-level", "debug", "--log-format", "json", "--log-dir",
                                      "logs", "--log-subsystems", "rank,launcher"}));
  EXPECT_TRUE(LogOptions().arguments().empty());
}

}  // namespace
}  // namespace troupe
