#include "launcher/bench_ranks.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <numeric>

#include "base/error.h"
#include "launcher/bench_routing.h"
#include "launcher/bench_rows.h"

namespace troupe::launcher {
namespace {

constexpr comm::ArenaShape kThreeRanks{.world_size = 3, .comm_buffer_bytes = size_t{1} << 20};
constexpr std::chrono::seconds kPatient{60};

bool has_children() { return ::waitpid(-1, nullptr, WNOHANG) != -1 || errno != ECHILD; }

std::string failure_of(const BenchBody& body) {
  try {
    run_bench_ranks(kThreeRanks, kPatient, body);
    return "none";
  } catch (const RankError& error) {
    return error.what();
  }
}

TEST(BenchRanks, HandBackWhatEachRankReports) {
  const auto reports =
      run_bench_ranks(kThreeRanks, kPatient, [](comm::Communicator& c, std::string& report) {
        comm::ProcessGroup group(c, 0, {0, 1, 2});
        std::vector<float> sum{static_cast<float>(c.world_rank())};
        group.all_reduce(std::span(sum));
        report = fmt::format("rank {}: {}", c.world_rank(), sum[0]);
      });

  EXPECT_EQ(reports, (std::vector<std::string>{"rank 0: 3", "rank 1: 3", "rank 2: 3"}));
  EXPECT_FALSE(has_children());
}

TEST(BenchRanks, NameTheRankThatWasKilledAndLeaveNone) {
  const std::string failure = failure_of([](comm::Communicator& c, std::string&) {
    comm::ProcessGroup group(c, 0, {0, 1, 2});
    if (c.world_rank() == 1) ::raise(SIGKILL);
    group.barrier();
  });

  EXPECT_EQ(failure, "rank 1 was killed by SIGKILL (signal 9)");
  EXPECT_FALSE(has_children());
}

TEST(BenchRanks, SayWhatTheFirstFailedRankSaid) {
  const std::string failure = failure_of([](comm::Communicator& c, std::string&) {
    comm::ProcessGroup group(c, 0, {0, 1, 2});
    if (c.world_rank() == 2) throw_rank_error("the cat sleeps on the keyboard");
    group.barrier();
  });

  EXPECT_EQ(failure, "the cat sleeps on the keyboard");
}

TEST(MeasureCollective, GivesEveryRankTheTimesOfTheSlowest) {
  const auto reports =
      run_bench_ranks(kThreeRanks, kPatient, [](comm::Communicator& c, std::string& report) {
        comm::ProcessGroup group(c, 0, {0, 1, 2});
        const BenchTimes times = measure_collective(group, 1e-3, [&] {
          if (c.world_rank() == 1) ::usleep(2000);
        });
        report = fmt::format("{} {} {}", times.p10_us, times.p50_us, times.p90_us);
        TROUPE_CHECK(times.p10_us >= 2000 && times.p10_us <= times.p50_us &&
                     times.p50_us <= times.p90_us);
      });

  EXPECT_EQ(reports[0], reports[1]);
  EXPECT_EQ(reports[0], reports[2]);
}

TEST(BenchRows, SurviveTheReport) {
  const BenchRow row{.op = "alltoallv",
                     .ranks = 4,
                     .op_case = "T=8 uniform",
                     .bytes = 458752,
                     .times = {1.25, 2.5, 5}};
  std::string report;
  append_row(report, row);
  append_row(report, {.op = "barrier", .ranks = 2, .op_case = "", .bytes = 0, .times = {}});

  const auto rows = rows_of(report);

  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].op, row.op);
  EXPECT_EQ(rows[0].op_case, row.op_case);
  EXPECT_EQ(rows[0].bytes, row.bytes);
  EXPECT_EQ(rows[0].times.p90_us, 5);
  EXPECT_EQ(rows[1].ranks, 2);
}

TEST(BenchRouting, DrawsDistinctExpertsAndSkewsThemTowardsTheFirst) {
  const auto uniform = draw_experts(0, 64, Routing::kUniform);
  const auto skewed = draw_experts(0, 64, Routing::kSkewed);

  ASSERT_EQ(uniform.size(), 64u * kBenchTopk);
  for (size_t token = 0; token < 64; ++token)
    for (int j = 0; j < kBenchTopk; ++j) {
      const int32_t* experts = &skewed[token * kBenchTopk];
      ASSERT_TRUE(experts[j] >= 0 && experts[j] < kBenchExperts);
      for (int k = 0; k < j; ++k) ASSERT_NE(experts[j], experts[k]);
    }
  const auto sum = [](const auto& ids) { return std::accumulate(ids.begin(), ids.end(), 0); };
  EXPECT_LT(sum(skewed), sum(uniform) / 2);
}

// The peer prints the bytes that the busiest of 8 ranks receives: 48, 336 and 2712 rows of 14336.
TEST(BenchRouting, SendsAsManyRowsAsTheMpiPeerSends) {
  const comm::ArenaShape eight{.world_size = 8, .comm_buffer_bytes = size_t{1} << 20};

  const auto reports =
      run_bench_ranks(eight, kPatient, [](comm::Communicator& c, std::string& report) {
        comm::ProcessGroup group(c, 0, {0, 1, 2, 3, 4, 5, 6, 7});
        for (const int tokens : {8, 64, 512})
          report += fmt::format("{} ", rows_to_ranks(group, tokens, Routing::kUniform)[7]);
        report += fmt::format("{}", rows_to_ranks(group, 512, Routing::kSkewed)[0]);
      });

  for (const std::string& report : reports) EXPECT_EQ(report, "6 42 339 512");
}

}  // namespace
}  // namespace troupe::launcher
