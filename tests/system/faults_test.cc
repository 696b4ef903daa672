// How a launch ends when it does not end well: a dead, a stopped or an interrupted process.
// Whatever happens, the cause is named, no answer looks complete that is not, and nothing is left
// behind.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <regex>

#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

namespace fs = std::filesystem;

enum class Stage { kLoading, kPrefill, kDecode };

std::string stage_name(Stage stage) {
  const char* names[] = {"Loading", "Prefilling", "Decoding"};
  return names[static_cast<int>(stage)];
}

constexpr int kWorldSize = 4;

// A launch with random weights that stays in one stage for a long time, and the files it was asked
// to write.
class LongJob {
 public:
  explicit LongJob(Stage stage, const std::vector<Ids>& prompts = {{1, 2, 3}},
                   const json& runtime = json::object())
      : stage_(stage), process_(arguments(prompts, runtime)) {}

  TroupeProcess& process() { return process_; }

  void wait_until_ready() {
    process_.wait_until("the ranks are ready", [&] {
      return process_.err_so_far().find("ranks ready") != std::string::npos;
    });
  }
  void wait_for_stage() {
    if (stage_ == Stage::kLoading) return wait_until_loading();
    wait_until_ready();
    if (stage_ == Stage::kPrefill) {
      // Every step makes a rank sleep at least once: until the next plan.
      const int pid = process_.rank_pid(0);
      const int64_t before = sleeps(pid);
      process_.wait_until("some steps are done", [&] { return sleeps(pid) > before + 50; });
    } else {
      process_.wait_until("tokens come", [&] { return process_.out_so_far().size() > 40; });
    }
  }

  // What a failed rank may be doing in this stage, as a regular expression.
  const char* stage_pattern() const {
    switch (stage_) {
      case Stage::kLoading:
        return "(starting|loading weights).*";
      case Stage::kPrefill:
        return "(prefill|idle after) step [0-9]+.*";
      case Stage::kDecode:
        return "(decode|idle after) step [0-9]+.*";
    }
    return "";
  }

  bool has_dump() const { return !fs::is_empty(dumps_.path()); }
  // What it wrote about its failure.
  json dump() const {
    std::vector<fs::path> files(fs::directory_iterator(dumps_.path()), {});
    if (files.size() != 1) throw std::runtime_error(fmt::format("{} dumps", files.size()));
    return json::parse(model::read_file(files[0]));
  }

  // After the end: no process, none of the files that were asked for, no other file.
  void expect_nothing_left() const {
    EXPECT_TRUE(process_.processes().empty());
    EXPECT_TRUE(fs::is_empty(process_.temporary_directory()));
    EXPECT_TRUE(fs::is_empty(output_.path()));
  }

 private:
  std::vector<std::string> arguments(const std::vector<Ids>& prompts, const json& runtime) const {
    json model = json::parse(model::read_file(tiny_moe() / "config.json"));
    model.update({{"vocab_size", 64}, {"max_position_embeddings", 65536}});
    if (stage_ == Stage::kLoading)
      model.update(
          {{"hidden_size", 1024}, {"n_routed_experts", 64}, {"moe_intermediate_size", 512}});
    const std::string model_path = model_.write("config.json", model.dump()).parent_path();

    json config = configuration(model_path, kWorldSize, "bfloat16");
    config["model_config"]["with_ckpt"] = false;
    config["runtime_config"] = runtime;
    config["runtime_config"]["dump_dir"] = dumps_.path();
    config["scheduler_config"]["max_new_tokens"] = 60000;
    const bool prefill = stage_ == Stage::kPrefill;
    if (prefill) config["scheduler_config"]["max_prefill_tokens"] = 1;

    auto words = command_line(prefill ? "score" : "run", config,
                              prefill ? std::vector<Ids>{Ids(40000, 7)} : prompts, input_);
    words[1] = "info";  // the log level: to see when the ranks are ready
    words.insert(words.end(), {"--json", output_.path() / "report.json"});
    if (prefill)
      words.insert(words.end(), {"--dump", output_.path() / "dump.safetensors"});
    else
      words.push_back("--ignore-eos");
    return words;
  }

  void wait_until_loading() const {
    for (int rank = 0; rank < kWorldSize; ++rank) {
      const int pid = process_.rank_pid(rank);
      process_.wait_until("the rank loads", [&] {
        return proc_file(pid, "maps").find("memfd:troupe-weights") != std::string::npos;
      });
    }
  }

  static int64_t sleeps(int pid) {
    const std::string status = proc_file(pid, "status"), key = "\nvoluntary_ctxt_switches:";
    const size_t found = status.find(key);
    return found == std::string::npos ? 0 : std::stoll(status.substr(found + key.size()));
  }

  Stage stage_;
  model::TemporaryDirectory model_, input_, output_, dumps_;
  TroupeProcess process_;
};

// The line that names the cause; the table of ranks comes below it.
std::string cause(const Ended& ended) {
  for (const std::string& line : ended.error_lines())
    if (line.starts_with("troupe: ")) return line;
  return "";
}

testing::AssertionResult matches(const std::string& text, const std::string& pattern) {
  if (std::regex_match(text, std::regex(pattern))) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << text << "' does not match '" << pattern << "'";
}

// The descriptors of a process that have a name in a file system, or a socket there.
std::vector<std::string> named_descriptors(int pid) {
  std::vector<std::string> names;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", pid), gone)) {
    const std::string target = fs::read_symlink(entry.path(), gone).string();
    if (target.starts_with('/') && !target.starts_with("/memfd:") && target != "/dev/null")
      names.push_back(target);
    if (!target.starts_with("socket:[")) continue;
    const std::string inode = target.substr(8, target.size() - 9);
    std::istringstream sockets(proc_file(pid, "net/unix"));
    for (std::string line; std::getline(sockets, line);)
      if (line.find(" " + inode + " /") != std::string::npos) names.push_back(line);
  }
  return names;
}

TEST(RunningLaunch, HoldsNothingWithANameThatCouldStayBehind) {
  LongJob job(Stage::kDecode);
  job.wait_for_stage();

  const std::vector<int> pids = job.process().processes();

  EXPECT_EQ(pids.size(), 1 + kWorldSize);
  for (const int pid : pids) {
    EXPECT_EQ(named_descriptors(pid), std::vector<std::string>{});
    EXPECT_EQ(proc_file(pid, "maps").find("/dev/shm/"), std::string::npos);
  }
  EXPECT_TRUE(fs::is_empty(job.process().temporary_directory()));
}

class KilledRank : public testing::TestWithParam<std::tuple<Stage, int>> {};

TEST_P(KilledRank, EndsTheLaunchWhichNamesItAndLeavesNothing) {
  const auto [stage, rank] = GetParam();
  LongJob job(stage);
  job.wait_for_stage();
  const int pid = job.process().rank_pid(rank);

  ::kill(pid, SIGKILL);
  const Ended ended = job.process().wait();

  EXPECT_EQ(ended.status, 3);
  EXPECT_TRUE(
      matches(cause(ended),
              fmt::format("troupe: rank {0} \\(pid {1}, DP {0}, EP {0}\\) was killed by SIGKILL "
                          "\\(signal 9\\) in {2}; dump: [^ ]*",
                          rank, pid, job.stage_pattern())));
  EXPECT_EQ(job.dump().at("failure").at("rank"), rank);
  EXPECT_EQ(ended.out.find('\n'), std::string::npos) << "a line ends a complete answer";
  job.expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(While, KilledRank,
                         testing::Combine(testing::Values(Stage::kLoading, Stage::kPrefill,
                                                          Stage::kDecode),
                                          testing::Values(0, 3)),
                         [](const auto& test) {
                           return fmt::format("{}_rank_{}", stage_name(std::get<0>(test.param)),
                                              std::get<1>(test.param));
                         });

TEST(RankKilled, WhileSeveralPromptsAreUnderWayLeavesNoAnswer) {
  LongJob job(Stage::kDecode, {{1}, {2}, {3}, {4}, {5}});
  job.wait_until_ready();

  ::kill(job.process().rank_pid(1), SIGKILL);
  const Ended ended = job.process().wait();

  EXPECT_EQ(ended.status, 3);
  EXPECT_EQ(ended.out, "");
  job.expect_nothing_left();
}

TEST(StoppedRank, IsNamedWhenTheTimeLimitHasPassed) {
  LongJob job(Stage::kDecode, {{1, 2, 3}}, {{"comm_timeout_s", 2}});
  job.wait_for_stage();

  ::kill(job.process().rank_pid(2), SIGSTOP);
  const Ended ended = job.process().wait();

  EXPECT_EQ(ended.status, 3);
  EXPECT_TRUE(matches(cause(ended),
                      "troupe: rank 2 \\(pid [0-9]+, DP 2, EP 2\\) is stopped .* in (decode|idle "
                      "after) step .*; dump: .*"));
  const auto lines = ended.error_lines();
  ASSERT_GE(lines.size(), 6u);
  EXPECT_EQ(lines.back(), cause(ended)) << "what matters is the last to be read";
  EXPECT_TRUE(matches(lines[lines.size() - 6], "  rank  .* of group [0-9]+ .*doing"));
  EXPECT_TRUE(matches(lines[lines.size() - 3], "     2  .*(decode step|idle).*"));
  job.expect_nothing_left();
}

class KilledLauncher : public testing::TestWithParam<Stage> {};

TEST_P(KilledLauncher, TakesItsRanksWithIt) {
  LongJob job(GetParam());
  job.wait_for_stage();

  ::kill(job.process().pid(), SIGKILL);
  const Ended ended = job.process().wait();

  EXPECT_EQ(ended.signal, SIGKILL);
  wait_until("the ranks are gone", [&] { return job.process().processes().empty(); });
  job.expect_nothing_left();
}

INSTANTIATE_TEST_SUITE_P(While, KilledLauncher,
                         testing::Values(Stage::kLoading, Stage::kPrefill, Stage::kDecode),
                         [](const auto& test) { return stage_name(test.param); });

class InterruptedLaunch : public testing::TestWithParam<std::tuple<int, Stage>> {};

TEST_P(InterruptedLaunch, EndsWith130AndLeavesNothing) {
  const auto [signal, stage] = GetParam();
  LongJob job(stage);
  job.wait_for_stage();

  // A terminal sends Ctrl-C to the ranks too; they leave it to the launcher.
  if (signal == SIGINT)
    for (int rank = 0; rank < kWorldSize; ++rank) ::kill(job.process().rank_pid(rank), SIGINT);
  ::kill(job.process().pid(), signal);
  const Ended ended = job.process().wait();

  EXPECT_EQ(ended.status, 130);
  EXPECT_EQ(cause(ended), "troupe: interrupted");
  EXPECT_EQ(ended.out.find('\n'), std::string::npos);
  job.expect_nothing_left();
  EXPECT_FALSE(job.has_dump()) << "nothing failed";
}

INSTANTIATE_TEST_SUITE_P(By, InterruptedLaunch,
                         testing::Combine(testing::Values(SIGINT, SIGTERM),
                                          testing::Values(Stage::kLoading, Stage::kPrefill,
                                                          Stage::kDecode)),
                         [](const auto& test) {
                           return fmt::format("SIG{}_{}", sigabbrev_np(std::get<0>(test.param)),
                                              stage_name(std::get<1>(test.param)));
                         });

}  // namespace
}  // namespace troupe::system_tests
