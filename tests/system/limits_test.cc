// What a launch says when the system gives it too little, and what `troupe doctor` and `troupe
// explain` say before.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <regex>

#include "tests/system/faulty_launch.h"

namespace troupe::system_tests {
namespace {

// Lowers a soft limit of this process, which those it starts inherit.
class SoftLimit {
 public:
  SoftLimit(__rlimit_resource what, rlim_t value) : what_(what) {
    ::getrlimit(what, &before_);
    rlimit lower = before_;
    lower.rlim_cur = value;
    ::setrlimit(what, &lower);
  }
  ~SoftLimit() { ::setrlimit(what_, &before_); }
  SoftLimit(const SoftLimit&) = delete;
  SoftLimit& operator=(const SoftLimit&) = delete;

 private:
  __rlimit_resource what_;
  rlimit before_{};
};

TEST(FewOpenFiles, AreRefusedWithNeedAndHaveBeforeRanksStart) {
  json config = configuration(tiny_moe(), 16, "bfloat16");
  const model::TemporaryDirectory directory;
  const auto words = command_line("run", config, {{1, 2}}, directory);
  const SoftLimit limit(RLIMIT_NOFILE, 64);

  const Ended ended = run_troupe(words);

  EXPECT_EQ(ended.status, 2);
  EXPECT_EQ(ended.err,
            "troupe: 16 ranks need 72 open files, the limit (RLIMIT_NOFILE) is 64; raise it with "
            "ulimit -n 72, or use fewer ranks\n");
}

TEST(FewOpenFiles, DoForAFewRanks) {
  const model::TemporaryDirectory directory;
  auto words = command_line("run", small_job(), {{1, 2}}, directory);
  words.push_back("--ignore-eos");
  const SoftLimit limit(RLIMIT_NOFILE, 64);

  const Ended ended = run_troupe(words);

  EXPECT_EQ(ended.status, 0) << ended.err;
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(LittleAddressSpace, IsRefusedWithNeedAndHaveBeforeRanksStart) {
  const model::TemporaryDirectory directory;
  const auto words = command_line("run", small_job(), {{1, 2}}, directory);
  const SoftLimit limit(RLIMIT_AS, rlim_t{512} << 20);

  const Ended ended = run_troupe(words);

  EXPECT_EQ(ended.status, 2);
  EXPECT_TRUE(std::regex_match(
      ended.err, std::regex("troupe: 4 ranks need [0-9.]+ [MG]iB of address space each, the limit "
                            "\\(RLIMIT_AS\\) is 512.0 MiB; raise it .*\n")))
      << ended.err;
}

// The need is no guess: with that much every rank starts.
TEST(LittleAddressSpace, DoesFromTheNeedOnThatTheRefusalNames) {
  const model::TemporaryDirectory directory;
  for (const int threads : {1, 3}) {
    json config = small_job();
    config["runtime_config"]["threads_per_rank"] = threads;
    const auto words = command_line("run", config, {{1, 2}}, directory);
    const auto ended_with = [&](rlim_t mib) {
      const SoftLimit limit(RLIMIT_AS, mib << 20);
      return run_troupe(words);
    };
    const std::string refusal = ended_with(256).err;
    std::smatch need;
    ASSERT_TRUE(std::regex_search(refusal, need, std::regex("need ([0-9.]+) MiB"))) << refusal;
    const auto mib = static_cast<rlim_t>(std::stod(need[1]));

    EXPECT_EQ(ended_with(mib + 1).err, "");
    EXPECT_EQ(ended_with(mib - 1).status, 2);
  }
}
#endif

TEST(Doctor, FindsTheSameBeforehand) {
  const model::TemporaryDirectory directory;
  const std::string config =
      directory.write("config.json", configuration(tiny_moe(), 16, "bfloat16").dump());

  EXPECT_EQ(run_troupe({"doctor", "--config", config}).status, 0);
  const SoftLimit limit(RLIMIT_NOFILE, 64);
  const Ended ended = run_troupe({"doctor", "--config", config, "--json"});

  EXPECT_EQ(ended.status, 1);
  int problems = 0;
  for (const json& finding : json::parse(ended.out)) {
    if (finding.at("level") != "problem") continue;
    ++problems;
    EXPECT_EQ(finding.at("subject"), "limits");
    EXPECT_EQ(finding.at("text"), "16 ranks need 72 open files, the limit (RLIMIT_NOFILE) is 64");
    EXPECT_EQ(finding.at("cure"), "raise it with ulimit -n 72, or use fewer ranks");
  }
  EXPECT_EQ(problems, 1);
}

TEST(Explain, SaysWhereEveryValueCameFrom) {
  const model::TemporaryDirectory directory;
  const std::string config = directory.write("a.yaml", fmt::format(R"(model_config:
  model_path: {}
parallel_config:
  world_size: 4
  attn_tp_size: 2
)",
                                                                   tiny_moe().string()));

  const Ended ended =
      run_troupe({"explain", "--config", config, "--set", "scheduler_config.batch_size=8"},
                 {{"WORLD_SIZE", "2"}});

  EXPECT_EQ(ended.status, 0) << ended.err;
  const auto has = [&](const std::string& pattern) {
    return std::regex_search(ended.out, std::regex(pattern));
  };
  EXPECT_TRUE(has("parallel_config.world_size +4 +" + config + ":4\n")) << ended.out;
  EXPECT_TRUE(has("scheduler_config.batch_size +8 +--set\n"));
  EXPECT_TRUE(has("scheduler_config.block_size +128 +default\n"));
  EXPECT_TRUE(has("parallel_config.attn_dp_size +2 +follows from the other sizes\n"));
  EXPECT_TRUE(has("WORLD_SIZE=2: infer.sh alone reads it, and sets parallel_config.world_size\n"));
  EXPECT_TRUE(has("4\n +sequences with 1 each")) << ended.out;
  EXPECT_TRUE(has("\\[0-1\\] \\[2-3\\]")) << "groups";
}

}  // namespace
}  // namespace troupe::system_tests
