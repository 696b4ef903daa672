// KV blocks: admission, preemption, the prefix cache; what a step tells ranks of a request.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "fake_ranks.h"
#include "scheduler_cases.h"

namespace troupe::actors {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::Ge;
using testing::HasSubstr;
using testing::IsEmpty;
using Ints = std::vector<int32_t>;

TEST(Scheduler, ARequestJoinsWhenThereAreBlocksForItAndWhatOthersNeedSoon) {
  SchedulerLimits limits = one_rank();
  limits.blocks_per_dp_rank = 3;  // 12 positions
  limits.reserved_decode_tokens = 3;
  FakeRanks world(limits, std::vector<Request>(2, request(4, 3)));  // 2 blocks each

  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(world.requests_on(0), ElementsAre(0));
    world.step();
  }

  EXPECT_THAT(world.requests_on(0), ElementsAre(1));
}

TEST(Scheduler, ARequestTakesBlocksAsItGrows) {
  FakeRanks world(one_rank(), {request(4, 9)});  // blocks of 4

  EXPECT_EQ(world.sequence(0, 0).block_table.size(), 1);
  world.step();
  for (int i = 0; i < 4; ++i, world.step()) EXPECT_EQ(world.sequence(0, 0).block_table.size(), 2);
  EXPECT_EQ(world.sequence(0, 0).block_table.size(), 3);
}

TEST(Scheduler, TheCheapestRequestGivesItsBlocksUpAndIsComputedAgainLater) {
  SchedulerLimits limits = one_rank();
  limits.blocks_per_dp_rank = 4;
  Request shorter = request(3, 6);
  shorter.prompt = {90, 91, 92};
  FakeRanks world(limits, {request(7, 5), shorter});

  world.step();  // 8 + 4 positions: 3 blocks; then 9 + 5: 5 blocks
  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 1));
  while (world.requests_on(0).size() == 2) world.step();
  EXPECT_THAT(world.requests_on(0), ElementsAre(0));
  EXPECT_EQ(world.completion(1).preemptions, 1);
  const auto kept = world.completion(1).tokens;
  while (world.completion(0).reason == FinishReason::kNone) world.step();

  // Its first block is still there; the rest is computed as if it were a prompt.
  EXPECT_THAT(world.requests_on(0), ElementsAre(1));
  EXPECT_EQ(world.sequence(0, 0).first_position, 4);
  EXPECT_EQ(world.sequence(0, 0).tokens, Ints(kept.begin() + 1, kept.end()));
  EXPECT_TRUE(world.sequence(0, 0).sample);
  while (!world.finished()) world.step();
  EXPECT_EQ(world.completion(1).tokens, (Ints{1003, 1004, 1005, 1006, 1007, 1008}));
  EXPECT_EQ(world.scheduler().statistics().preemptions, 1);
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

TEST(Scheduler, ReusesTheBlocksOfACommonBeginning) {
  FakeRanks world(one_rank(), {request(10, 1)});  // 10, 11, ...: blocks of 4
  world.step();
  Request other = request(9, 1);
  other.prompt[7] = 99;

  world.scheduler().submit(request(9, 1));
  world.scheduler().submit(request(8, 1));
  world.scheduler().submit(other);
  world.scheduler().advance();

  EXPECT_EQ(world.sequence(0, 0).tokens, Ints{18});
  EXPECT_EQ(world.sequence(0, 1).tokens, (Ints{14, 15, 16, 17}));  // the last row is computed
  EXPECT_EQ(world.sequence(0, 2).tokens, (Ints{14, 15, 16, 99, 18}));
  EXPECT_EQ(world.sequence(0, 0).block_table[0], world.sequence(0, 2).block_table[0]);
  EXPECT_EQ(world.completion(1).reused_tokens, 8);
  EXPECT_EQ(world.scheduler().statistics().reused_tokens, 16);
  EXPECT_EQ(world.scheduler().statistics().admitted_tokens, 10 + 9 + 8 + 9);
}

TEST(Scheduler, WithMtpABlockIsReusedOnlyBeforeTheTokenThatFollowedIt) {
  FakeRanks world(with_drafts(1), {request(10, 1)});
  world.step();
  Request other = request(9, 1);
  other.prompt[8] = 99;  // the MTP row of position 7 depends on it

  world.scheduler().submit(request(9, 1));
  world.scheduler().submit(other);
  world.scheduler().advance();

  EXPECT_EQ(world.sequence(0, 0).first_position, 8);
  EXPECT_EQ(world.sequence(0, 1).first_position, 4);
}

// Blocks of 4, a window of 6: a query at position p sees [p - 5, p].
SchedulerLimits with_window() {
  SchedulerLimits limits = one_rank();
  limits.window = 6;
  limits.max_prefill_tokens = 8;
  return limits;
}

TEST(Scheduler, SlidingLayersGiveBackWhatLiesBehindTheirWindow) {
  FakeRanks world(with_window(), {request(20, 100)});

  EXPECT_THAT(world.sequence(0, 0).window_table, ElementsAre(Ge(0), Ge(0)));
  world.step();  // 8 to 15, which see 3 and more
  EXPECT_THAT(world.sequence(0, 0).window_table, ElementsAre(Ge(0), Ge(0), Ge(0), Ge(0)));
  world.step();  // 16 to 19 see 11 and more
  EXPECT_THAT(world.sequence(0, 0).window_table, ElementsAre(-1, -1, Ge(0), Ge(0), Ge(0)));
  for (int i = 0; i < 60; ++i) world.step();
  const auto& table = world.sequence(0, 0).window_table;
  EXPECT_EQ(std::ssize(table), std::ssize(world.sequence(0, 0).block_table));
  EXPECT_LE(std::ranges::count_if(table, [](int32_t b) { return b >= 0; }), 3);
}

TEST(Scheduler, ALongSequenceNeedsOnlyItsWindowInSlidingLayers) {
  const SchedulerLimits limits = with_window();
  const int64_t window = limits.blocks_of(6 - 1 + 8) + 1;

  EXPECT_EQ(limits.most_blocks(400, 400), 800 / 4 + window);
  EXPECT_EQ(limits.most_blocks(4, 4), 2 + 2);
}

TEST(Scheduler, APrefixNeedsTheBlocksOfItsLastWindowOnly) {
  SchedulerLimits limits = with_window();
  // 16 tokens: 4 blocks, and 4 of sliding layers, of which the last 2 are seen from position 16.
  limits.blocks_per_dp_rank = 12;
  FakeRanks world(limits, {request(16, 1)});
  world.step();
  world.step();
  ASSERT_TRUE(world.finished());

  Request longer = request(17, 1);
  world.scheduler().submit(longer);
  world.scheduler().advance();

  EXPECT_EQ(world.sequence(0, 0).first_position, 16);
  EXPECT_THAT(world.sequence(0, 0).window_table, ElementsAre(-1, -1, Ge(0), Ge(0), Ge(0)));
  world.step();

  // Another request takes the blocks that were unused for longest: those behind the window.
  Request other = request(12, 1);
  std::ranges::fill(other.prompt, 99);
  world.scheduler().submit(other);
  world.scheduler().advance();
  while (!world.finished()) world.step();
  world.scheduler().submit(longer);
  world.scheduler().advance();
  EXPECT_EQ(world.sequence(0, 0).first_position, 16);
}

TEST(Scheduler, WhatIsObservedIsNotReused) {
  FakeRanks world(one_rank(), {request(10, 1)});
  world.step();
  Request observed = request(10, 0);
  observed.observe = static_cast<uint8_t>(msg::Observe::Logits);

  world.scheduler().submit(observed);
  world.scheduler().advance();

  EXPECT_EQ(world.sequence(0, 0).first_position, 0);
}

TEST(Scheduler, ARequestGoesToTheRankThatHasItsBeginning) {
  FakeRanks world(ranks(2, 4), {request(3, 1), request(10, 1)});
  world.step();
  ASSERT_TRUE(world.finished());

  world.scheduler().submit(request(10, 1));
  world.scheduler().advance();

  EXPECT_THAT(world.requests_on(0), IsEmpty());
  EXPECT_EQ(world.sequence(1, 0).first_position, 8);
}

TEST(Scheduler, RefusesARequestThatNoPoolCanHold) {
  SchedulerLimits limits = one_rank();
  limits.blocks_per_dp_rank = 3;
  try {
    FakeRanks world(limits, {request(4, 8), request(4, 9)});
    FAIL() << "submitted";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("prompt 1"), HasSubstr("4 KV blocks of 4"),
                                    HasSubstr("a rank has 3")));
  }
}

TEST(Scheduler, AStopHookEndsARequestAfterItsToken) {
  Request r = request(3, 100);
  r.stops_after = [](int32_t token) { return token == 52; };
  FakeRanks world(with_drafts(3), {r});

  world.answer(0, world.answer_of(0, {{{50}, {51, 52, 53}}}));
  world.answer(0, world.answer_of(0, {{{51, 52, 53, 54}, {55, 56, 57}}}));

  EXPECT_THAT(world.tokens_said, ElementsAre("0: 50", "0: 51 52 stop"));
}

TEST(Scheduler, TellsRanksHowOftenAPenalisedRequestHasEachToken) {
  Request r = request(2, 9);
  r.prompt = {7, 7};
  r.frequency_penalty = 1;
  FakeRanks world(one_rank(), {r, request(2, 9)});
  const auto seen = [&] {
    std::map<int32_t, int32_t> counts;
    for (const msg::TokenCount& t : world.sequence(0, 0).seen) counts[t.token()] = t.count();
    return counts;
  };

  EXPECT_EQ(seen(), (std::map<int32_t, int32_t>{{7, 0}}));
  EXPECT_TRUE(world.sequence(0, 1).seen.empty());
  for (const int32_t token : {5, 7, 5})
    world.answer(0, world.answer_of(0, {{{token}, {}}, {{1}, {}}}));
  EXPECT_EQ(seen(), (std::map<int32_t, int32_t>{{7, 1}, {5, 2}}));
  EXPECT_EQ(world.plan(0).candidates, 0);
}

}  // namespace
}  // namespace troupe::actors
