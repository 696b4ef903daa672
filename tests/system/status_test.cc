// Looking on at launches: `troupe status` and `troupe top`, also while nothing moves.
#include <gtest/gtest.h>
#include <signal.h>

#include <map>
#include <sstream>
#include <thread>

#include "tests/system/faulty_launch.h"

namespace troupe::system_tests {
namespace {

json status_of(const TroupeProcess& process) {
  const Ended ended = run_troupe({"status", "--json", std::to_string(process.pid())});
  if (ended.status != 0) throw std::runtime_error(ended.err);
  return json::parse(ended.out).at(0);
}

// Rank 2 is stopped in a dispatch, and nobody has noticed yet.
class HangingLaunch : public FaultyLaunch {
 public:
  HangingLaunch() : FaultyLaunch({"stop:rank=2,stage=dispatch,step=5"}, patient_job()) {
    const int pid = process().rank_pid(2);
    process().wait_until("it is stopped", [&] { return process_state(pid) == 'T'; });
  }

 private:
  static json patient_job() {
    json config = small_job();
    config["runtime_config"]["comm_timeout_s"] = 600;
    return config;
  }
};

TEST(Status, OfAHangingLaunchNamesTheAbsentRankAndWhatAllAreIn) {
  HangingLaunch launch;
  json status;
  // The others may still be on their way to where they wait.
  wait_until("the absent rank is known", [&] {
    status = status_of(launch.process());
    return status.at("absent") == json{2};
  });

  EXPECT_EQ(status.at("pid"), launch.process().pid());
  EXPECT_EQ(status.at("ranks").size(), size_t{kWorldSize});
  const json& stopped = status.at("ranks").at(2);
  EXPECT_EQ(stopped.at("state"), "stopped");
  EXPECT_EQ(stopped.at("operation"), "dispatch");
  EXPECT_EQ(stopped.at("stage"), "decode");
  EXPECT_EQ(stopped.at("step"), 5);
  EXPECT_GT(stopped.at("in_collective_s"), 0);
  EXPECT_GT(stopped.at("rss_mb"), 1);
  EXPECT_EQ(stopped.at("pid"), launch.process().rank_pid(2));
  EXPECT_EQ(stopped.at("role"), "DP 1, TP 0, EP 1, ETP 0");
  EXPECT_EQ(status.at("requests").at("running"), 2);
  EXPECT_GT(status.at("tokens").at("prompt"), 0);
}

TEST(Status, AsTextSaysTheSame) {
  HangingLaunch launch;
  const std::string pid = std::to_string(launch.process().pid());
  wait_until("the absent rank is known", [&] {
    const Ended ended = run_troupe({"status", pid});
    return ended.status == 0 &&
           ended.out.find("absent: rank 2 (stopped, in decode step 5") != std::string::npos;
  });
}

TEST(Status, OfNoLaunchSaysWhichThereAre) {
  HangingLaunch launch;

  const Ended ended = run_troupe({"status", "1"});

  EXPECT_EQ(ended.status, 2);
  EXPECT_NE(ended.err.find("process 1 is no launch of this user; running are: "),
            std::string::npos);
  EXPECT_NE(ended.err.find(std::to_string(launch.process().pid())), std::string::npos);
}

TEST(Status, NamesTheStraggler) {
  json config = small_job();
  config["scheduler_config"]["max_new_tokens"] = 4000;
  FaultyLaunch launch({"slow:rank=1,stage=decode,factor=100"}, config);
  launch.process().rank_pid(kWorldSize - 1);

  launch.process().wait_until("the straggler is named",
                              [&] { return status_of(launch.process()).at("straggler") == 1; });
}

// In clock ticks (10 ms), as in /proc/PID/stat behind the name: fields 14 and 15.
int64_t cpu_ticks(int pid) {
  const std::string stat = proc_file(pid, "stat");
  std::istringstream fields(stat.substr(stat.rfind(')') + 2));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  int64_t user = 0, system = 0;
  fields >> user >> system;
  return user + system;
}

// While one rank sleeps for long, all others wait for it; and the launcher for them.
TEST(WaitingProcesses, TakeHardlyAnyTimeOfACore) {
  json config = small_job();
  config["runtime_config"]["comm_timeout_s"] = 600;
  FaultyLaunch launch({"delay:rank=2,stage=dispatch,step=5,ms=600000"}, config);
  launch.process().rank_pid(kWorldSize - 1);
  launch.process().wait_until("all wait for it",
                              [&] { return status_of(launch.process()).at("absent") == json{2}; });

  std::map<int, int64_t> before;
  for (const int pid : launch.process().processes()) before[pid] = cpu_ticks(pid);
  std::this_thread::sleep_for(std::chrono::seconds(1));

  EXPECT_EQ(before.size(), size_t{kWorldSize} + 1);
  for (const auto& [pid, ticks] : before) EXPECT_LE(cpu_ticks(pid) - ticks, 5) << pid;
}

TEST(Top, ShowsALaunchAsOftenAsAsked) {
  HangingLaunch launch;

  const Ended ended = run_troupe(
      {"top", std::to_string(launch.process().pid()), "--interval", "0.1", "--count", "2"});

  EXPECT_EQ(ended.status, 0) << ended.err;
  size_t shown = 0;
  for (size_t at = 0; (at = ended.out.find("tokens/s: ", at)) != std::string::npos; ++at) ++shown;
  EXPECT_EQ(shown, 2u);
}

TEST(Onlookers, ThatSayNothingDoNotDisturbALaunch) {
  FaultyLaunch launch({"delay:rank=0,stage=decode,step=3,ms=300"});
  launch.process().rank_pid(kWorldSize - 1);
  for (int i = 0; i < 3; ++i) run_troupe({"status", std::to_string(launch.process().pid())});

  launch.wait();

  EXPECT_EQ(launch.ended().status, 0) << launch.ended().err;
  EXPECT_EQ(launch.ended().err, "");
}

}  // namespace
}  // namespace troupe::system_tests
