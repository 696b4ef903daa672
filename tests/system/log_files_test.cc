// What a launch leaves in the directory of --log-dir.
#include <gtest/gtest.h>

#include <sstream>

#include "tests/system/golden.h"
#include "tests/system/jobs.h"
#include "tests/system/troupe_process.h"

namespace troupe::system_tests {
namespace {

class LogFiles : public testing::Test {
 protected:
  Ended run(const std::vector<std::string>& log, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words{"--log-dir", logs().string()};
    words.insert(words.end(), log.begin(), log.end());
    for (const char* word : {"run", "--config", TROUPE_SOURCE_DIR "/configs/tiny_moe.yaml",
                             "--prompt-ids", "1,2,3", "--set", "parallel_config.world_size=2"})
      words.emplace_back(word);
    words.insert(words.end(), {"--set", "model_config.model_path=" + tiny_moe().string(), "--set",
                               "scheduler_config.max_new_tokens=4"});
    words.insert(words.end(), more.begin(), more.end());
    return run_troupe(words);
  }
  std::filesystem::path logs() const { return directory_.path() / "made/when/needed"; }
  std::string file(const std::string& name) const { return model::read_file(logs() / name); }

  model::TemporaryDirectory directory_;
};

TEST_F(LogFiles, AreOneOfTheLauncherAndOneOfEachRank) {
  const Ended ended = run({});

  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_CONTAINS(file("launcher.log"), "2 ranks ready");
  for (const char* rank : {"rank_0.log", "rank_1.log"}) {
    EXPECT_CONTAINS(file(rank), "ready: weights in");
    EXPECT_CONTAINS(file(rank), "done: ");
  }
  EXPECT_FALSE(std::filesystem::exists(logs() / "rank_2.log"));
}

TEST_F(LogFiles, AsJsonNameStepsAndRequests) {
  const Ended ended = run({"--log-format", "json", "--log-level", "debug"});

  EXPECT_EQ(ended.status, 0) << ended.err;
  const auto lines = [&](const std::string& name) {
    std::vector<json> result;
    std::istringstream text(file(name));
    for (std::string line; std::getline(text, line);) result.push_back(json::parse(line));
    return result;
  };
  int64_t last_step = -1, steps = 0;
  for (const json& line : lines("rank_1.log")) {
    EXPECT_EQ(line.at("rank"), 1);
    if (!line.contains("actor")) continue;
    EXPECT_GT(line.at("step").get<int64_t>(), last_step);
    last_step = line.at("step");
    ++steps;
  }
  EXPECT_GE(steps, 2);  // the prompt, then at most 1 + 1 drafted tokens a step
  bool ended_by_length = false;
  for (const json& line : lines("launcher.log"))
    if (line.value("request", -1) == 0 && line.at("text") == "ended: length")
      ended_by_length = true;
  EXPECT_TRUE(ended_by_length);
}

TEST_F(LogFiles, BringTheConfigurationAsAFileThatGivesTheSameText) {
  const Ended first = run({"--log-level", "error"});
  const std::string copy = directory_.write("copy.yaml", file("config.yaml"));
  const Ended second =
      run_troupe({"--log-level", "error", "run", "--config", copy, "--prompt-ids", "1,2,3"});

  EXPECT_EQ(second.status, 0) << second.err;
  EXPECT_EQ(second.out, first.out);
  EXPECT_CONTAINS(file("config.yaml"), "world_size: 2");
}

TEST_F(LogFiles, SayWhyALaunchFailed) {
  const Ended ended = run({}, {"--inject", "kill:rank=1,step=2", "--set",
                               "runtime_config.dump_dir=" + directory_.path().string()});

  EXPECT_EQ(ended.status, 3) << ended.err;
  EXPECT_CONTAINS(file("launcher.log"), "error launcher rank 1");
}

}  // namespace
}  // namespace troupe::system_tests
