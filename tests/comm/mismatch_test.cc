// Calls that do not fit together, and headers that lie: found at that call, never a hang.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "world.h"

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;

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

TEST(Mismatch, OfABarrierThatWasStartedAndOneThatIsWaitedForIsFound) {
  const auto errors = mismatch([](ProcessGroup& group) {
    if (group.rank() == 1)
      group.start_barrier().wait();
    else
      group.barrier();
  });

  for (const std::string& error : errors) {
    EXPECT_TRUE(contains(error, "started barrier of group 4 (#1)"));
    EXPECT_TRUE(contains(error, " barrier of group 4 (#1), 0 bytes"));
  }
}

TEST(Mismatch, OnEveryRankSaysWhoHasComeToItsCall) {
  const auto errors = mismatch([](ProcessGroup& group) {
    std::vector<std::byte> in(8), out(24);
    group.communicator().enter_step(Stage::kDecode, 5);
    if (group.rank() == 1)
      group.all_gather(in, out);
    else
      group.barrier();
  });

  for (const int rank : {0, 2})
    EXPECT_TRUE(contains(errors[rank], "Arrived: 0, 2. Not arrived: 1 (decode step 5"));
  EXPECT_TRUE(contains(errors[1], "Arrived: 1. Not arrived: 0 (decode step 5"));
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

}  // namespace
}  // namespace troupe::comm
