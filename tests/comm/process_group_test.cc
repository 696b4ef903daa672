// What a group promises beside its results: progress, counting, handles.
#include "comm/process_group.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "serial_model.h"

namespace troupe::comm {
namespace {

TEST(Collectives, TwoRanksThatSendEachOtherLongMessagesBothAdvance) {
  Arena arena = make_arena(2);

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1});
    Call(Kind::kAllToAll, 5, 100 * kSmallSlot, group).run();
  });

  EXPECT_EQ(errors, all_fine(2));
}

TEST(Collectives, CutLongMessagesIntoChunksShorterThanASlot) {
  Arena arena = make_arena(3, size_t{2} << 20);

  const auto errors = run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {2, 0, 1});
    for (const Kind kind : {Kind::kAllGather, Kind::kAllReduce, Kind::kAllToAllV, Kind::kBroadcast})
      Call(kind, 5, 700'001, group).run();
  });

  EXPECT_EQ(errors, all_fine(3));
}

TEST(Collectives, CountWhatTheySendToOthers) {
  Arena arena = make_arena(3);

  const auto errors = run_threads(3, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1, 2});
    Call(Kind::kAllGather, 5, 10'000, group).run();
    require(communicator.bytes_sent() == 20'000, "bytes_sent");
  });

  EXPECT_EQ(errors, all_fine(3));
}

TEST(Pending, LetsBothSidesStartBeforeEitherWaits) {
  Arena arena = make_arena(2);
  Communicator one(arena, 0, kPatient), other(arena, 1, kPatient);
  ProcessGroup group_one(one, 0, {0, 1}), group_other(other, 0, {0, 1});
  Call call_one(Kind::kAllGather, 1, 100, group_one),
      call_other(Kind::kAllGather, 1, 100, group_other);

  Pending pending_one = call_one.start();
  Pending pending_other = call_other.start();
  pending_one.wait();
  pending_other.wait();

  call_one.check();
  call_other.check();
}

TEST(Pending, AFourthCallOfAGroupIsRefused) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});
  std::vector<Call> calls(4, Call(Kind::kAllGather, 1, 100, group));

  Pending first = calls[0].start(), second = calls[1].start(), third = calls[2].start();

  EXPECT_THROW(calls[3].start(), std::logic_error);
}

TEST(Pending, DroppedBeforeItsEndLeavesTheRankUnableToCommunicate) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});

  {
    Call call(Kind::kAllGather, 1, 100, group);
    const Pending dropped = call.start();
  }

  EXPECT_THROW(group.barrier(), RankError);
}

}  // namespace
}  // namespace troupe::comm
