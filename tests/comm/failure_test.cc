// What happens when the world breaks: mismatched calls, late, dead and lying ranks.
#include <gtest/gtest.h>

#include <ctime>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string_view>
#include <thread>
#include <tuple>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "comm/heartbeat.h"
#include "world.h"

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;

TEST(Wait, NamesTheRankThatDidNotComeAndWhereItIs) {
  Arena arena = make_arena(3);
  std::atomic<int> ended{0};

  const auto errors = run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, milliseconds(100));
    ProcessGroup group(communicator, 0, ranks_up_to(3));
    if (rank == 2) {
      communicator.enter_step(Stage::kLoading, 0);
      while (ended < 2) std::this_thread::yield();
      return;
    }
    communicator.enter_step(Stage::kDecode, 14);
    communicator.enter_layer(3);
    struct CountAtExit {
      std::atomic<int>& count;
      ~CountAtExit() { ++count; }
    } counter{ended};
    group.barrier();
  });

  const std::string waited = "waited 100 ms for rank 2, which is in: loading weights.";
  for (const int rank : {0, 1}) {
    EXPECT_TRUE(contains(errors[rank], fmt::format("rank {}: barrier of group 0 (#1), decode step "
                                                   "14, layer 3: ",
                                                   rank)));
    EXPECT_TRUE(contains(errors[rank], waited));
    EXPECT_TRUE(contains(errors[rank], "raise runtime_config.comm_timeout_s"));
    EXPECT_TRUE(contains(errors[rank], "Arrived: 0-1. Not arrived: 2 (loading weights)."));
  }
  const std::string first = arena.failure(arena.first_failed_rank());
  EXPECT_TRUE(contains(first, waited));
}

TEST(Wait, BlamesTheEndOfAChainOfWaits) {
  Arena arena = make_arena(4);
  for (const auto& [rank, next] : {std::pair(1, 3), std::pair(3, 2)}) {
    arena.activity(rank).waiting_for = next;
    arena.activity(rank).beat_ns = std::numeric_limits<int64_t>::max();
  }
  Communicator communicator(arena, 0, milliseconds(1));

  try {
    communicator.wait_until([] { return false; }, 1);
    FAIL() << "returned";
  } catch (const RankError& error) {
    EXPECT_TRUE(contains(error.what(), "for rank 1"));
    EXPECT_TRUE(contains(error.what(), "leads to rank 2"));
  }
}

// Three ranks that wait for each other in a circle, and a fourth that is in none of the waits.
class CircleOfWaits : public testing::Test {
 protected:
  CircleOfWaits() {
    for (int rank = 0; rank < 3; ++rank) arena.activity(rank).waiting_for = (rank + 1) % 3;
    for (int rank = 0; rank < 4; ++rank)
      arena.activity(rank).beat_ns = std::numeric_limits<int64_t>::max();
  }
  void stop(int rank) { arena.activity(rank).beat_ns = 0; }
  Blame blame() const { return find_blame(arena, 0, 1, milliseconds(1000)); }

  Arena arena = make_arena(4);
};

TEST_F(CircleOfWaits, OfRanksThatRunIsBlamedOnTheSilentOneOutside) {
  stop(3);

  EXPECT_EQ(blame().kind, Blame::Kind::kOutsideCircle);
  EXPECT_EQ(blame().rank, 3);
  EXPECT_TRUE(blame().silent);
}

TEST_F(CircleOfWaits, IsBlamedOnTheStoppedOneInside) {
  stop(2);

  EXPECT_EQ(blame().kind, Blame::Kind::kEndOfChain);
  EXPECT_EQ(blame().rank, 2);
  EXPECT_TRUE(blame().silent);
}

TEST_F(CircleOfWaits, IsNotBlamedOnARankWithoutAPlan) {
  stop(3);
  arena.activity(3).stage = Stage::kIdle;

  EXPECT_EQ(blame().kind, Blame::Kind::kNobody);
}

TEST_F(CircleOfWaits, OfRanksThatAllRunHasNobodyToBlame) {
  EXPECT_EQ(blame().kind, Blame::Kind::kNobody);
}

TEST(Heartbeat, GoesOnWhileARankSleeps) {
  Arena arena = make_arena(2);
  std::atomic<bool> flag{false};

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    if (rank == 0) return communicator.wait_until([&] { return flag.load(); }, 1);
    while (arena.rank_state(0).sleeping_for == kAwake) std::this_thread::yield();
    const int64_t asleep = arena.snapshot(0).beat_ns;
    while (arena.snapshot(0).beat_ns == asleep) std::this_thread::sleep_for(milliseconds(50));
    flag = true;
    communicator.ring(0);
  });

  EXPECT_EQ(errors, all_fine(2));
}

TEST(Wait, OfAnAbortedLaunchEndsAtOnceOnEveryRank) {
  Arena arena = make_arena(3);

  const auto errors = run_threads(4, [&](int rank) {
    if (rank == 3) {  // the launcher
      for (const int waiting : {0, 1})
        while (arena.rank_state(waiting).sleeping_for == kAwake) std::this_thread::yield();
      return arena.abort();
    }
    if (rank == 2) return;
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {rank, 2});
    group.barrier();
  });

  for (const int rank : {0, 1})
    EXPECT_EQ(errors[rank], fmt::format("rank {}: barrier of group 0 (#1), starting: the launch is "
                                        "ending. Arrived: {}. Not arrived: 2 (starting).",
                                        rank, rank));
}

TEST(Wait, EndsAtOnceWhenAnotherRankHasFailed) {
  Arena arena = make_arena(3);

  const auto errors = run_threads(3, [&](int rank) {
    if (rank == 2) {
      for (const int waiting : {0, 1})
        while (arena.rank_state(waiting).sleeping_for == kAwake) std::this_thread::yield();
      return arena.publish_failure(2, "out of memory");
    }
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(3));
    group.barrier();
  });

  for (const int rank : {0, 1}) EXPECT_TRUE(contains(errors[rank], "rank 2 failed: out of memory"));
  EXPECT_EQ(arena.failure(0), "");  // a consequence, not a cause
}

TEST(Wait, ReturnsWhenAPeerRings) {
  Arena arena = make_arena(2);
  std::atomic<bool> flag{false};

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    if (rank == 0) return communicator.wait_until([&] { return flag.load(); }, 1);
    while (arena.rank_state(0).sleeping_for == kAwake) std::this_thread::yield();
    flag = true;
    communicator.ring(0);
  });

  EXPECT_EQ(errors, all_fine(2));
}

TEST(Failure, LeavesTheRankUnableToCommunicate) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, milliseconds(1));
  ProcessGroup group(communicator, 0, {0, 1});
  std::vector<std::byte> in(10), out(20);

  Pending pending = group.start_all_gather(in, out);
  EXPECT_THROW(pending.wait(), RankError);

  for (int call = 0; call < 2; ++call) {
    try {
      group.barrier();
      FAIL() << "communicated";
    } catch (const RankError& error) {
      EXPECT_TRUE(contains(error.what(), "an earlier collective of this rank failed"));
    }
  }
}

int64_t cpu_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// CPU time of all ranks together while they wait for the last of them, which sleeps for a while.
int64_t cpu_ns_of_a_wait(ProcessGroup& group, std::chrono::nanoseconds length) {
  group.barrier();
  const int64_t before = cpu_ns();
  if (group.rank() == 0) std::this_thread::sleep_for(length);
  group.barrier();
  const int64_t used = cpu_ns() - before;
  std::vector<int64_t> of_all(group.size());
  group.all_gather(std::as_bytes(std::span(&used, 1)), std::as_writable_bytes(std::span(of_all)));
  return std::accumulate(of_all.begin(), of_all.end(), int64_t{0});
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kSanitizerSlowdown = 10;
#else
constexpr int kSanitizerSlowdown = 1;
#endif

class BlockedRanks : public testing::TestWithParam<int> {};

// The least of a few waits: other programs make a rank's time longer, never shorter.
TEST_P(BlockedRanks, UseLessThanAHundredthOfACoreTogether) {
  constexpr std::chrono::seconds kWait{1};
  constexpr int kWaits = 8;
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);
  Processes processes(world_size, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(world_size));
    const int64_t goal = std::chrono::nanoseconds(kWait).count() / 100 * kSanitizerSlowdown;
    int64_t least = goal;
    for (int wait = 0; wait < kWaits && least >= goal; ++wait)
      least = std::min(least, cpu_ns_of_a_wait(group, kWait));
    require(least < goal, fmt::format("{} us or more of CPU time in a second", least / 1000));
  });

  EXPECT_EQ(processes.join(), all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, BlockedRanks, testing::Values(2, 8, 32, 128));

TEST(AbortedLaunch, EndsProcessesThatSleepAndTheySayWhoHasNotCome) {
  Arena arena = make_arena(3);
  Processes processes(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(3));
    for (;;) group.barrier();
  });

  await_collective(arena, 0, 10);
  processes.kill(1);
  for (const int waiting : {0, 2}) {
    const Arena::Window& from_dead = arena.window(waiting, 1);
    while (from_dead.passed != from_dead.barriers) std::this_thread::yield();
    while (arena.snapshot(waiting).waiting_for != 1) std::this_thread::yield();
  }
  arena.abort();

  const auto errors = processes.join();
  for (const int rank : {0, 2}) {
    EXPECT_TRUE(contains(errors[rank], "the launch is ending"));
    EXPECT_TRUE(contains(errors[rank], "Arrived: 0, 2. Not arrived: 1 ("));
  }
}

}  // namespace
}  // namespace troupe::comm
