// Faults on request (--inject) in whole launches: each ends in the way that is promised for it, the
// culprit is named, and nothing is left behind. TROUPE_ALL_FAULTS=1 tries every rank.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <regex>

#include "tests/system/faulty_launch.h"

namespace troupe::system_tests {
namespace {

testing::AssertionResult matches(const std::string& text, const std::string& pattern) {
  if (std::regex_match(text, std::regex(pattern))) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << text << "' does not match '" << pattern << "'";
}

std::vector<int> ranks_to_try() {
  if (std::getenv("TROUPE_ALL_FAULTS") != nullptr) return {0, 1, 2, 3};
  return {2};
}

struct Place {
  const char* stage;
  const char* said;  // of it in the final line
};
void PrintTo(const Place& place, std::ostream* out) { *out << place.stage; }

const Place kPlaces[] = {
    {"starting", "starting"},
    {"loading", "loading weights"},
    {"idle", "idle"},
    {"prefill", "prefill step [0-9]+"},
    {"decode", "decode step [0-9]+"},
    {"draft", "draft step [0-9]+"},
    {"all_gather", "[a-z]+ step [0-9]+.*, all_gather of group [0-9]+ \\(#[0-9]+\\).*"},
    {"all_to_all_v", "[a-z]+ step [0-9]+.*, all_to_all_v of group [0-9]+ \\(#[0-9]+\\).*"},
    {"dispatch", "[a-z]+ step [0-9]+, layer [0-9]+, dispatch of group [0-9]+ \\(#[0-9]+\\).*"},
    {"combine", "[a-z]+ step [0-9]+, layer [0-9]+, combine of group [0-9]+ \\(#[0-9]+\\).*"},
    {"stopping", "stopping"},
};
std::string name_of(const testing::TestParamInfo<Place>& test) { return test.param.stage; }

class AtEachStage : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Of, AtEachStage, testing::ValuesIn(kPlaces), name_of);

TEST_P(AtEachStage, AKilledRankIsNamedWithWhereItWas) {
  for (const int rank : ranks_to_try()) {
    FaultyLaunch launch({fmt::format("kill:rank={},stage={}", rank, GetParam().stage)});
    launch.wait();

    EXPECT_EQ(launch.ended().status, 3);
    EXPECT_TRUE(
        matches(launch.last_line(),
                fmt::format("troupe: {} was killed by SIGKILL \\(signal 9\\) in {}(; waited "
                            "for by ranks? [0-9, ]+)?; dump: .*",
                            rank_pattern(rank), GetParam().said)));
    EXPECT_EQ(launch.dump().at("failure").at("rank"), rank);
    EXPECT_EQ(launch.dump().at("ranks").size(), size_t{kWorldSize});
    EXPECT_TRUE(launch.left_nothing());
  }
}

class StoppedAtEachStage : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Of, StoppedAtEachStage,
                         testing::Values(kPlaces[1], kPlaces[2], kPlaces[4], kPlaces[8],
                                         kPlaces[10]),
                         name_of);

TEST_P(StoppedAtEachStage, TheStoppedRankIsNamedNotAWaiter) {
  json config = small_job();
  config["runtime_config"]["comm_timeout_s"] = 0.5;
  for (const int rank : ranks_to_try()) {
    FaultyLaunch launch({fmt::format("stop:rank={},stage={}", rank, GetParam().stage)}, config);
    launch.wait();

    EXPECT_EQ(launch.ended().status, 3);
    EXPECT_TRUE(matches(launch.last_line(),
                        fmt::format("troupe: {} is stopped \\(by SIGSTOP or a debugger\\) in .*",
                                    rank_pattern(rank))));
    EXPECT_EQ(launch.dump().at("ranks").at(rank).at("state"), "stopped");
    EXPECT_TRUE(launch.left_nothing());
  }
}

TEST(StoppedRank, ThatGoesOnInTimeChangesNothing) {
  FaultyLaunch undisturbed({});
  undisturbed.wait();
  FaultyLaunch launch({"stop:rank=1,stage=dispatch,step=6", "stop:rank=3,stage=combine,step=12"});

  for (const int rank : {1, 3}) {
    const int pid = launch.process().rank_pid(rank);
    launch.process().wait_until("it is stopped", [&] { return process_state(pid) == 'T'; });
    ::kill(pid, SIGCONT);
  }
  launch.wait();

  EXPECT_EQ(launch.ended().status, 0) << launch.ended().err;
  EXPECT_EQ(launch.ended().out, undisturbed.ended().out);
}

TEST(SlowAndLateRanks, ChangeNothing) {
  FaultyLaunch undisturbed({});
  undisturbed.wait();
  FaultyLaunch launch({"slow:rank=2,factor=10", "delay:rank=0,stage=dispatch,step=4,ms=50",
                       "delay:rank=3,stage=loading,ms=50"});
  launch.wait();

  EXPECT_EQ(launch.ended().status, 0) << launch.ended().err;
  EXPECT_EQ(launch.ended().out, undisturbed.ended().out);
}

TEST(CrashedRank, LeavesItsStackInTheDump) {
  FaultyLaunch launch({"segv:rank=1,stage=dispatch,step=3"});
  launch.wait();

  EXPECT_EQ(launch.ended().status, 3);
  EXPECT_TRUE(
      matches(launch.last_line(),
              fmt::format("troupe: {} was killed by SIGSEGV \\(signal 11\\) in .*, dispatch "
                          "of group .*",
                          rank_pattern(1))));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  const json dump = launch.dump();
  const json& crash = dump.at("ranks").at(1).at("crash");
  EXPECT_EQ(crash.at("signal"), "SIGSEGV");
  EXPECT_EQ(crash.at("address"), "0x0");
  std::string functions;
  for (const json& frame : crash.at("stack")) functions += frame.at("function").get<std::string>();
  for (const char* name : {"comm::FaultInjector::arrive", "comm::FusedExchange::send_rows",
                           "actors::MoeActor::", "main"})
    EXPECT_NE(functions.find(name), std::string::npos) << name << " is not in " << functions;
  EXPECT_FALSE(dump.at("ranks").at(0).contains("crash"));
#endif
}

class AtEachCollective : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Of, AtEachCollective,
                         testing::Values(kPlaces[6], kPlaces[7], kPlaces[8], kPlaces[9]), name_of);

// Who tells of it depends on who looks first; both calls are in the line, and so is the culprit.
TEST_P(AtEachCollective, ADroppedOneEndsTheLaunchWhichNamesTheRank) {
  json config = small_job();
  config["runtime_config"]["comm_timeout_s"] = 2;
  for (const int rank : ranks_to_try()) {
    FaultyLaunch launch({fmt::format("drop:rank={},stage={},step=3", rank, GetParam().stage)},
                        config);
    launch.wait();

    EXPECT_EQ(launch.ended().status, 3);
    EXPECT_TRUE(
        matches(launch.last_line(), fmt::format("troupe: .*rank {}( \\(|, which brings).*", rank)));
    EXPECT_TRUE(launch.left_nothing());
  }
}

TEST_P(AtEachCollective, ACorruptHeaderEndsTheLaunchAtThatCall) {
  for (const int rank : ranks_to_try()) {
    FaultyLaunch launch({fmt::format("corrupt:rank={},stage={},step=3", rank, GetParam().stage)});
    launch.wait();

    EXPECT_EQ(launch.ended().status, 3);
    EXPECT_TRUE(matches(launch.last_line(),
                        fmt::format("troupe: rank [0-3] .* failed in .*{} of group.*: expected .* "
                                    "from rank {}, which brings .*",
                                    GetParam().stage, rank)));
    EXPECT_TRUE(launch.left_nothing());
  }
}

TEST(TracedLaunch, ThatFailsHasEveryRanksLastEventsInTheDump) {
  const model::TemporaryDirectory directory;
  FaultyLaunch launch({"kill:rank=1,stage=dispatch,step=6"}, small_job(),
                      {"--trace", directory.path() / "trace"});
  launch.wait();

  EXPECT_EQ(launch.ended().status, 3);
  const json dump = launch.dump();
  for (const json& rank : dump.at("ranks")) {
    const json& events = rank.at("trace");
    ASSERT_GE(events.size(), 100u);
    EXPECT_LE(events.size(), 256u);
    double before = 1e9;
    for (const json& event : events) {
      EXPECT_LE(event.at("start_ms_ago").get<double>(), before);
      before = event.at("start_ms_ago");
    }
    EXPECT_GE(before, 0);
    EXPECT_LT(before, 60e3);
  }
  // The killed one was in the dispatch of that step, which has begun and not ended.
  const json& last = dump.at("ranks").at(1).at("trace").back();
  EXPECT_EQ(last.at("step"), 6);
  EXPECT_EQ(last.at("actor"), "moe");
  EXPECT_EQ(last.at("event"), "dispatch");
  EXPECT_TRUE(last.at("end_ms_ago").is_null());
}

TEST(UntracedLaunch, HasNoTraceInItsDump) {
  FaultyLaunch launch({"kill:rank=1,stage=prefill"});
  launch.wait();

  EXPECT_FALSE(launch.dump().at("ranks").at(1).contains("trace"));
}

// Every command that starts ranks takes --inject.
TEST(InjectedFault, HappensInBenchAndServeToo) {
  const model::TemporaryDirectory directory;
  json config = small_job();
  config["runtime_config"]["dump_dir"] = directory.path();
  const std::string file = directory.write("config.json", config.dump());
  using Words = std::vector<std::string>;

  for (const Words& command :
       {Words{"bench", "decode"}, Words{"bench", "prefill"}, Words{"bench", "serve"},
        Words{"serve", "--port", "0"}, Words{"score", "--prompt-ids", "1,2"}, Words{"chat"},
        Words{"verify", "--prompt-ids", "1,2"}}) {
    Words words{"--log-level", "error"};
    words.insert(words.end(), command.begin(), command.end());
    words.insert(words.end(), {"--config", file, "--inject", "kill:rank=2,stage=idle"});
    const Ended ended = run_troupe(words);

    EXPECT_EQ(ended.status, 3) << command.front() << command.back() << ended.err;
    EXPECT_NE(ended.err.find("was killed by SIGKILL (signal 9) in idle"), std::string::npos)
        << ended.err;
  }
}

TEST(CorruptMessage, IsRefusedWithItsSender) {
  for (const char* stage : {"loading", "decode"}) {
    FaultyLaunch launch({fmt::format("corrupt:rank=3,stage={}", stage)});
    launch.wait();

    EXPECT_EQ(launch.ended().status, 3);
    EXPECT_TRUE(
        matches(launch.last_line(),
                fmt::format("troupe: {} failed in .*: a message of [0-9]+ bytes from rank 3 "
                            "is not a valid Envelope(; waited for by ranks? [0-9, ]+)?; dump: .*",
                            rank_pattern(3))));
    EXPECT_TRUE(launch.left_nothing());
  }
}

TEST(InjectedFault, ThatIsMisspeltIsTheUsersError) {
  FaultyLaunch launch({"kill:rank=4"});
  launch.wait();

  EXPECT_EQ(launch.ended().status, 2);
  EXPECT_EQ(launch.ended().err,
            "troupe: --inject kill:rank=4: rank is a number from 0 to 3, not '4'\n");
}

TEST(InjectedFault, ThatNeverCameToItsPlaceIsTold) {
  json config = small_job();
  auto words = command_line("run", config, {{1}}, model::scratch_directory());
  words[1] = "warn";
  words.insert(words.end(), {"--inject", "kill:rank=0,stage=broadcast", "--inject",
                             "delay:rank=1,stage=prefill,ms=1"});
  const Ended ended = run_troupe(words);

  EXPECT_EQ(ended.status, 0);
  EXPECT_NE(ended.err.find("1 of 2 faults of --inject never came to their place"),
            std::string::npos)
      << ended.err;
}

TEST(FailedLaunch, SaysWhyThereIsNoDump) {
  json config = small_job();
  FaultyLaunch launch({"kill:rank=0,stage=prefill", "kill:rank=1,stage=prefill"}, config);
  launch.wait();
  EXPECT_NE(launch.last_line().find("; dump: /"), std::string::npos);

  auto words = command_line("run", config, {{1}}, model::scratch_directory());
  words.insert(words.end(),
               {"--inject", "kill:rank=0,stage=prefill", "--set", "runtime_config.dump_dir=/proc"});
  EXPECT_NE(run_troupe(words).err.find("; no dump: /proc/"), std::string::npos);
}

}  // namespace
}  // namespace troupe::system_tests
