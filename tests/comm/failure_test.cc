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

testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

// Runs one call per rank in a world of three and then barriers, in which those learn of the error
// who have not met it themselves.
std::vector<std::string> mismatch(const std::function<void(ProcessGroup&)>& call) {
  Arena arena = make_arena(3);
  return run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 4, ranks_up_to(3));
    call(group);
    group.barrier();
    group.barrier();
  });
}

TEST(Mismatch, OfTheKindOfCallNamesBothOnEveryRank) {
  const auto errors = mismatch([](ProcessGroup& group) {
    std::vector<std::byte> in(8), out(24);
    if (group.rank() == 1)
      group.all_gather(in, out);
    else
      group.barrier();
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "all_gather of group 4 (#1), 8 bytes"));
    EXPECT_TRUE(contains(error, "barrier of group 4 (#1), 0 bytes"));
  }
}

TEST(Mismatch, OfSizesNamesBothOnEveryRank) {
  const auto errors = mismatch([](ProcessGroup& group) {
    std::vector<float> data(group.rank() == 2 ? 65 : 64);
    group.all_reduce(data);
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "256 bytes of f32"));
    EXPECT_TRUE(contains(error, "260 bytes of f32"));
  }
}

TEST(Mismatch, OfElementTypesOfTheSameSizeIsFound) {
  const auto errors = mismatch([](ProcessGroup& group) {
    std::vector<float> floats(64);
    std::vector<Bf16> halves(128);
    if (group.rank() == 0)
      group.all_reduce(floats);
    else
      group.all_reduce(halves);
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "of f32"));
    EXPECT_TRUE(contains(error, "of bf16"));
  }
}

TEST(Mismatch, OfAllToAllVCountsIsFound) {
  const auto errors = mismatch([](ProcessGroup& group) {
    const std::vector<int64_t> sent{5, 5, 5}, expected{5, 5, 5}, displs{0, 5, 10};
    const std::vector<int64_t> more{5, 5, 6};
    std::vector<std::byte> in(16), out(16);
    const auto& send = group.rank() == 0 ? more : sent;
    group.all_to_all_v(in, out, {send, displs, expected, displs});
  });

  for (const std::string& error : errors) EXPECT_TRUE(contains(error, "all_to_all_v"));
  for (const std::string& error : errors) EXPECT_TRUE(contains(error, "brings"));
  for (const std::string& error : errors) EXPECT_TRUE(contains(error, "6 bytes"));
}

TEST(Mismatch, OfASkippedCallShowsInTheSequenceNumbers) {
  const auto errors = mismatch([](ProcessGroup& group) {
    std::vector<std::byte> data(4);
    group.broadcast(data, 0);
    if (group.rank() == 0) group.broadcast(data, 0);  // the others go on to the barriers
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "(#2)"));
    EXPECT_TRUE(contains(error, "brings"));
  }
}

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
                                        "ending",
                                        rank));
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

struct Corruption {
  const char* name;
  std::function<void(Arena::Window&)> apply;
};

// What rank 1 gets to read after rank 0 has sent it an all_gather of one chunk.
class CorruptWindow : public testing::TestWithParam<Corruption> {};

TEST_P(CorruptWindow, IsARankError) {
  Arena arena = make_arena(2);
  Communicator sender(arena, 0, milliseconds(100)), receiver(arena, 1, milliseconds(100));
  ProcessGroup sending(sender, 0, {0, 1}), receiving(receiver, 0, {0, 1});
  std::vector<std::byte> in(100), out(200);
  Pending sent = sending.start_all_gather(in, out);

  GetParam().apply(arena.window(1, 0));

  EXPECT_THROW(receiving.all_gather(in, out), RankError);
  EXPECT_TRUE(contains(arena.failure(1), "rank 0"));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, CorruptWindow,
    testing::Values(
        Corruption{"operation", [](auto& w) { w.slots[0].operation = static_cast<Operation>(99); }},
        Corruption{"group", [](auto& w) { w.slots[0].group = 8; }},
        Corruption{"sequence", [](auto& w) { w.slots[0].sequence = 2; }},
        Corruption{"total_bytes", [](auto& w) { w.slots[0].total_bytes = uint64_t{1} << 60; }},
        Corruption{"offset", [](auto& w) { w.slots[0].offset = uint64_t{1} << 60; }},
        Corruption{"chunk_bytes", [](auto& w) { w.slots[0].chunk_bytes = uint64_t{1} << 60; }},
        Corruption{"phase", [](auto& w) { w.slots[0].phase = 1; }},
        Corruption{"element", [](auto& w) { w.slots[0].element = 200; }},
        Corruption{"counts", [](auto& w) { w.slots[0].counts[1] = 1; }},
        Corruption{"published", [](auto& w) { w.published = 3; }},
        Corruption{"nothing_published", [](auto& w) { w.published = 0; }}),
    [](const auto& test) { return test.param.name; });

TEST(CorruptConsumedCount, IsARankErrorOfTheSender) {
  Arena arena = make_arena(2);
  Communicator sender(arena, 0, milliseconds(100));
  ProcessGroup group(sender, 0, {0, 1});
  std::vector<std::byte> data(100);

  arena.window(1, 0).consumed = 5;

  // The count is looked at when the slots have been used up.
  EXPECT_THROW(for (int call = 0; call < 3; ++call) group.broadcast(data, 0), RankError);
  EXPECT_TRUE(contains(arena.failure(0), "the window to rank 1 is corrupt"));
}

// Calls that never end by themselves, on messages of several chunks.
struct Endless {
  const char* name;
  std::function<void(ProcessGroup&)> call;
};

// Dispatch and combine of tokens that each go to two of eight experts, without computing them.
template <class Exchange>
void run_round(ProcessGroup& group) {
  constexpr int kTokens = 10, kTopk = 2, kExperts = 8;
  constexpr size_t kRowBytes = 128;
  Exchange exchange(group, {.num_experts = kExperts,
                            .topk = kTopk,
                            .row_bytes = kRowBytes,
                            .result_bytes = kRowBytes,
                            .max_tokens = kTokens});
  const std::vector<std::byte> rows(kTokens * kRowBytes);
  std::vector<int32_t> ids(kTokens * kTopk);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i % kExperts);
  MoeExchange::Tokens tokens{.rows = rows.data(),
                             .row_stride = kRowBytes,
                             .count = kTokens,
                             .topk_ids = ids,
                             .weights = {}};
  do {
    exchange.start_dispatch(tokens);
    exchange.finish_dispatch();
    exchange.start_combine();
    exchange.finish_combine();
    exchange.release();
    tokens = tokens.from(exchange.taken(), kTopk);
  } while (exchange.more());
}

std::vector<Endless> endless_calls() {
  static std::vector<std::byte> in(5 * kSmallSlot), out(5 * kSmallSlot);
  static std::vector<float> data(100'000), part(25'000);
  static const std::vector<int64_t> bytes(4, kSmallSlot), displs{0, 4096, 8192, 12288};
  const auto four = [](auto& all) { return std::span(all).first(4 * kSmallSlot); };
  return {
      {"barrier", [](auto& group) { group.barrier(); }},
      {"broadcast", [](auto& group) { group.broadcast(out, 1); }},
      {"all_gather",
       [=](auto& group) { group.all_gather(std::span(in).first(kSmallSlot), four(out)); }},
      {"reduce_scatter",
       [](auto& group) { group.reduce_scatter(std::span<const float>(data), std::span(part)); }},
      {"short_all_reduce", [](auto& group) { group.all_reduce(std::span(data).first(100)); }},
      {"long_all_reduce", [](auto& group) { group.all_reduce(std::span(data)); }},
      {"all_to_all", [=](auto& group) { group.all_to_all(four(in), four(out)); }},
      {"all_to_all_v",
       [](auto& group) {
         group.all_to_all_v(in, out, {bytes, displs, bytes, displs});
       }},
      {"handles",
       [](auto& group) {
         Pending first = group.start_all_reduce(data);
         Pending second = group.start_all_to_all_v(in, out, {bytes, displs, bytes, displs});
         first.wait();
         second.wait();
       }},
      {"fused_round", [](auto& group) { run_round<FusedExchange>(group); }},
      {"double_routing_round", [](auto& group) { run_round<DoubleRouting>(group); }},
  };
}

// Lost at a random moment of any collective: killed, or stopped, which no process can see.
class LostRank : public testing::TestWithParam<std::tuple<Endless, int>> {};

TEST_P(LostRank, IsNamedByTheSurvivors) {
  const auto& [endless, signal] = GetParam();
  std::mt19937_64 random(std::hash<std::string_view>{}(endless.name) + static_cast<size_t>(signal));
  const int lost = static_cast<int>(random() % 4);
  const uint64_t collective = 1 + random() % 40;
  const auto later = std::chrono::microseconds(random() % 500);
  SCOPED_TRACE(fmt::format("rank {}, {} us after collective {}", lost, later.count(), collective));
  Arena arena = make_arena(4);
  Processes processes(4, [&](int rank) {
    Communicator communicator(arena, rank, milliseconds(1000));
    ProcessGroup group(communicator, 0, ranks_up_to(4));
    for (;;) std::get<Endless>(GetParam()).call(group);
  });

  await_collective(arena, lost, collective);
  std::this_thread::sleep_for(later);
  processes.kill(lost, signal);
  while (arena.first_failed_rank() < 0) std::this_thread::sleep_for(milliseconds(1));
  processes.kill(lost);

  const auto errors = processes.join();
  EXPECT_EQ(errors[lost], "killed by signal 9");
  for (int rank = 0; rank < 4; ++rank)
    if (rank != lost) {
      EXPECT_TRUE(contains(errors[rank], fmt::format("rank {}", lost)));
    }
}

std::string name_of_loss(const testing::TestParamInfo<std::tuple<Endless, int>>& test) {
  const auto& [endless, signal] = test.param;
  return fmt::format("{}_{}", endless.name, signal == SIGKILL ? "killed" : "stopped");
}

INSTANTIATE_TEST_SUITE_P(Inside, LostRank,
                         testing::Combine(testing::ValuesIn(endless_calls()),
                                          testing::Values(SIGKILL, SIGSTOP)),
                         name_of_loss);

TEST(Mismatch, OfABarrierAndACallOfAnotherGroupIsFound) {
  Arena arena = make_arena(2);

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup one(communicator, 1, {0, 1}), other(communicator, 2, {0, 1});
    std::vector<float> data(8);
    if (rank == 0)
      one.barrier();
    else
      other.all_reduce(std::span(data));
    one.barrier();
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "barrier of group 1 (#1)"));
    EXPECT_TRUE(contains(error, "all_reduce of group 2 (#1)"));
  }
}

TEST(Mismatch, OfTwoBarriersIsFound) {
  Arena arena = make_arena(2);

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup one(communicator, 1, {0, 1}), other(communicator, 2, {0, 1});
    (rank == 0 ? one : other).barrier();
    one.barrier();
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "barrier of group 1 (#1)"));
    EXPECT_TRUE(contains(error, "barrier of group 2 (#1)"));
  }
}

// A handle of several chunks is still on its way when its sender comes to a barrier.
TEST(Barrier, WithAHandleThatIsNotYetSentIsNoMismatch) {
  Arena arena = make_arena(2);

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 1, {0, 1});
    std::vector<std::byte> in(20 * kSmallSlot, std::byte(rank)), out(2 * in.size());
    Pending pending = group.start_all_gather(in, out);
    if (rank == 0) group.barrier();
    pending.wait();
    if (rank == 1) group.barrier();
    require(out.front() == std::byte{0} && out.back() == std::byte{1}, "all_gather");
  });

  EXPECT_EQ(errors, all_fine(2));
}

TEST(BlockedRanks, UseHardlyAnyOfACore) {
  constexpr int kRanks = 32;
  Arena arena = make_arena(kRanks);
  Processes processes(kRanks, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(kRanks));
    const auto cpu_ns = [] {
      timespec time{};
      ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
      return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
    };
    group.barrier();
    const double before = cpu_ns();
    if (rank == 0) std::this_thread::sleep_for(milliseconds(1000));
    group.barrier();
    const double used = cpu_ns() - before;
    std::vector<double> of_all(kRanks);
    group.all_gather(std::as_bytes(std::span(&used, 1)), std::as_writable_bytes(std::span(of_all)));
    const double total = std::accumulate(of_all.begin(), of_all.end(), 0.0);
    require(total < 0.1e9, fmt::format("{} ms of CPU time in a second", total * 1e-6));
  });

  EXPECT_EQ(processes.join(), all_fine(kRanks));
}

TEST(AbortedLaunch, EndsProcessesThatSleep) {
  Arena arena = make_arena(3);
  Processes processes(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(3));
    for (;;) group.barrier();
  });

  await_collective(arena, 0, 10);
  processes.kill(1);
  arena.abort();

  const auto errors = processes.join();
  EXPECT_TRUE(contains(errors[0], "the launch is ending"));
  EXPECT_TRUE(contains(errors[2], "the launch is ending"));
}

}  // namespace
}  // namespace troupe::comm
