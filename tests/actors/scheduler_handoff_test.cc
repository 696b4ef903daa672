// Requests that one launch begins and another goes on with: blocks that are held, and adopted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fake_ranks.h"
#include "scheduler_cases.h"

namespace troupe::actors {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Ints = std::vector<int32_t>;

constexpr int kForeign = 5000;  // ids of another launch's blocks: past the 1000 of one_rank()

Request held(int prompt_tokens) {
  Request r = request(prompt_tokens, 1);
  r.hold = true;
  return r;
}

// With blocks of 4; `let_go` counts.
Request adopted(int prompt_tokens, int max_new_tokens, bool pull, int* let_go) {
  Request r = request(prompt_tokens, max_new_tokens);
  AdoptedBlocks blocks{.blocks = {},
                       .positions = prompt_tokens,
                       .first_token = FakeRanks::default_token(prompt_tokens),
                       .drafts = {},
                       .pull = pull,
                       .let_go = [let_go] { ++*let_go; }};
  for (int i = 0; i * 4 < prompt_tokens; ++i) blocks.blocks.push_back(kForeign + i);
  r.adopted = blocks;
  return r;
}

std::vector<std::pair<int32_t, int32_t>> copies(const msg::SequencePlanT& plan) {
  std::vector<std::pair<int32_t, int32_t>> all;
  for (const msg::BlockCopy& copy : plan.copies) all.emplace_back(copy.from(), copy.to());
  return all;
}

TEST(Scheduler, AHeldRequestKeepsItsBlocksUntilItIsReleased) {
  FakeRanks world(one_rank(), {held(9)});  // 3 blocks
  EXPECT_FALSE(world.scheduler().held(0));
  const Ints table = world.sequence(0, 0).block_table;
  world.step();

  ASSERT_TRUE(world.scheduler().held(0));
  EXPECT_EQ(world.scheduler().held(0)->blocks, table);
  EXPECT_EQ(world.scheduler().held(0)->positions, 9);
  EXPECT_EQ(world.scheduler().state().held, 1);
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 3);
  EXPECT_TRUE(world.finished());
  world.scheduler().release(0);
  EXPECT_EQ(world.scheduler().state().held, 0);
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

TEST(Scheduler, WhatIsHeldLeavesNoRoomForOthersUntilItIsReleased) {
  SchedulerLimits limits = one_rank();
  limits.blocks_per_dp_rank = 4;
  Request other = request(9, 1);
  other.prompt[0] = 99;
  FakeRanks world(limits, {held(9)});
  world.step();
  world.scheduler().submit(other);
  world.scheduler().advance();
  EXPECT_EQ(world.scheduler().state().waiting, 1);

  const uint64_t generation = world.scheduler().held(0)->generations.at(2);
  world.scheduler().release(0);
  world.scheduler().advance();
  world.step();
  EXPECT_EQ(world.completion(1).reason, FinishReason::kLength);
  world.scheduler().submit(held(9));
  world.scheduler().advance();
  world.step();
  EXPECT_GT(world.scheduler().held(2)->generations.at(2), 0);
  EXPECT_EQ(generation, 1);
}

TEST(Scheduler, AHeldRequestThatIsAbortedGivesItsBlocksBack) {
  FakeRanks world(one_rank(), {held(9), held(5)});
  world.scheduler().cancel(0);
  world.step();
  world.scheduler().release(1);

  EXPECT_FALSE(world.scheduler().held(0));
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

TEST(Scheduler, AnAdoptedRequestReadsForeignBlocksAndCopiesThePartlyFilledOne) {
  int let_go = 0;
  FakeRanks world(one_rank(), {adopted(9, 4, false, &let_go)});

  const msg::SequencePlanT& first = world.sequence(0, 0);
  EXPECT_TRUE(world.plan(0).decode);
  EXPECT_EQ(first.first_position, 9);
  EXPECT_EQ(first.tokens, Ints{FakeRanks::default_token(9)});
  const int32_t own = first.block_table.at(2);
  EXPECT_LT(own, 1000);
  EXPECT_THAT(first.block_table, ElementsAre(kForeign, kForeign + 1, own));
  EXPECT_THAT(copies(first), ElementsAre(std::pair(kForeign + 2, own)));
  world.step();
  EXPECT_THAT(copies(world.sequence(0, 0)), IsEmpty());
  EXPECT_EQ(let_go, 0);
  while (!world.finished()) world.step();

  EXPECT_EQ(let_go, 1);
  EXPECT_THAT(world.completion(0).tokens, ElementsAre(1009, 1010, 1011, 1012));
  EXPECT_THAT(world.tokens_said, ElementsAre("0: 1010", "0: 1011", "0: 1012 length"));
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

TEST(Scheduler, APullingRequestHasOwnBlocksAfterSomeSteps) {
  int let_go = 0;
  FakeRanks world(one_rank(),
                  {adopted(25, 10, true, &let_go)});  // 7 blocks, the last partly filled

  EXPECT_EQ(copies(world.sequence(0, 0)).size(), 4);
  EXPECT_EQ(copies(world.sequence(0, 0))[0].first, kForeign + 6);
  world.step();
  EXPECT_EQ(copies(world.sequence(0, 0)).size(), 3);
  EXPECT_EQ(let_go, 0);
  world.step();
  EXPECT_EQ(let_go, 1);  // long before its end
  for (const int32_t block : world.sequence(0, 0).block_table) EXPECT_LT(block, 1000);
  while (!world.finished()) world.step();

  EXPECT_EQ(let_go, 1);
  EXPECT_EQ(world.completion(0).tokens.size(), 10);
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

TEST(Scheduler, APreemptedRequestReadsItsAdoptedBlocksAgain) {
  SchedulerLimits limits = one_rank();
  limits.blocks_per_dp_rank = 6;  // three requests want three own blocks each
  int let_go = 0;
  FakeRanks world(limits, std::vector<Request>(3, adopted(9, 12, false, &let_go)));
  while (!world.finished()) world.step();

  EXPECT_GT(world.scheduler().statistics().preemptions, 0);
  EXPECT_EQ(let_go, 3);
  for (int i = 0; i < 3; ++i)
    EXPECT_THAT(world.completion(i).tokens, ElementsAre(1009, 1010, 1011, 1012, 1013, 1014, 1015,
                                                        1016, 1017, 1018, 1019, 1020));
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

TEST(Scheduler, ACancelledRequestLetsGoWhenNoStepReadsItsBlocks) {
  SchedulerLimits limits = one_rank();
  limits.batch_size = 1;
  int running = 0, waiting = 0;
  FakeRanks world(limits, {adopted(9, 8, false, &running), adopted(9, 8, false, &waiting)});
  world.scheduler().cancel(1);
  EXPECT_EQ(waiting, 1);
  world.scheduler().cancel(0);
  EXPECT_EQ(running, 0);  // its step is under way
  world.step();

  EXPECT_EQ(running, 1);
  EXPECT_EQ(world.scheduler().state().blocks_in_use, 0);
}

}  // namespace
}  // namespace troupe::actors
