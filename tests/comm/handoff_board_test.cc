#include "comm/handoff_board.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"

namespace troupe::comm {
namespace {

HandoffBoard reader_of(const HandoffBoard& board, uint32_t slots, int64_t blocks) {
  return HandoffBoard::open(Fd(::fcntl(board.fd(), F_DUPFD_CLOEXEC, 0)), slots, blocks);
}

using Owned = HandoffBoard::Owned;

TEST(HandoffBoard, ABlockComesBackWhenItsReaderHasFinished) {
  HandoffBoard owner = HandoffBoard::create(2, 4);
  const HandoffBoard reader = reader_of(owner, 2, 4);
  const auto ticket = owner.offer();
  ASSERT_TRUE(ticket);

  EXPECT_EQ(owner.look(*ticket), Owned::kAway);
  EXPECT_FALSE(reader.holds(*ticket));
  EXPECT_TRUE(reader.take(*ticket));
  EXPECT_TRUE(reader.holds(*ticket));
  EXPECT_EQ(owner.look(*ticket), Owned::kAway);
  reader.finish(*ticket);
  EXPECT_FALSE(reader.holds(*ticket));
  EXPECT_EQ(owner.look(*ticket), Owned::kDone);
}

TEST(HandoffBoard, OfTakingAndTakingBackOneSucceeds) {
  HandoffBoard owner = HandoffBoard::create(1, 1);
  const HandoffBoard reader = reader_of(owner, 1, 1);
  for (int round = 0; round < 2000; ++round) {
    const auto ticket = owner.offer();
    bool taken = false;
    std::thread other([&] { taken = reader.take(*ticket); });
    const bool withdrawn = owner.withdraw(*ticket);
    other.join();
    ASSERT_NE(taken, withdrawn);
    if (withdrawn) continue;
    reader.finish(*ticket);
    ASSERT_EQ(owner.look(*ticket), Owned::kDone);
  }
}

TEST(HandoffBoard, WhoComesLateFindsAnotherTicketInTheSameSlot) {
  HandoffBoard owner = HandoffBoard::create(1, 1);
  const HandoffBoard reader = reader_of(owner, 1, 1);
  const auto first = owner.offer();
  ASSERT_TRUE(owner.withdraw(*first));
  const auto second = owner.offer();
  ASSERT_EQ(first->slot, second->slot);

  EXPECT_FALSE(reader.take(*first));
  EXPECT_TRUE(reader.take(*second));
  EXPECT_FALSE(reader.holds(*first));
  reader.finish(*first);  // nothing
  EXPECT_TRUE(reader.holds(*second));
  EXPECT_FALSE(owner.withdraw(*second));
}

TEST(HandoffBoard, HasNoMoreSlotsThanItWasMadeWithAndIsOpenedAsItIs) {
  HandoffBoard owner = HandoffBoard::create(1, 3);
  EXPECT_TRUE(owner.offer());
  EXPECT_FALSE(owner.offer());
  EXPECT_EQ(owner.generations().size(), 3);
  EXPECT_THROW(reader_of(owner, 1, 4), RankError);
}

}  // namespace
}  // namespace troupe::comm
