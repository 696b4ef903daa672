// Who runs where and when: requests that come and go, prompts in pieces.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fake_ranks.h"
#include "scheduler_cases.h"

namespace troupe::actors {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Ints = std::vector<int32_t>;

// ---- who runs where -----------------------------------------------------------------------------

TEST(Scheduler, ARequestGoesToTheRankWithTheFewestSequences) {
  std::vector<Request> requests(7, request(3, 5));
  requests[1].max_new_tokens = requests[4].max_new_tokens = 1;
  FakeRanks world(ranks(3, 6), requests);

  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 3));
  EXPECT_THAT(world.requests_on(1), ElementsAre(1, 4));
  EXPECT_THAT(world.requests_on(2), ElementsAre(2, 5));

  world.step();  // ends 1 and 4

  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 3));
  EXPECT_THAT(world.requests_on(1), ElementsAre(6));
  EXPECT_THAT(world.requests_on(2), ElementsAre(2, 5));
}

TEST(Scheduler, BatchSizeBoundsTheSequencesInFlightOverAllRanks) {
  std::vector<Request> requests(5, request(3, 4));
  requests[0].max_new_tokens = 1;
  FakeRanks world(ranks(2, 3), requests);

  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 2));
  EXPECT_THAT(world.requests_on(1), ElementsAre(1));

  world.step();  // ends 0: the next one that waits takes its place

  EXPECT_THAT(world.requests_on(0), ElementsAre(2, 3));
  EXPECT_THAT(world.requests_on(1), ElementsAre(1));
}

TEST(Scheduler, ABatchSmallerThanTheWorldLeavesRanksIdle) {
  FakeRanks world(ranks(4, 1), std::vector<Request>(3, request(3, 1)));

  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(world.requests_on(0), ElementsAre(i));
    for (int rank = 1; rank < 4; ++rank) EXPECT_THAT(world.requests_on(rank), IsEmpty());
    world.step();
  }
  EXPECT_TRUE(world.finished());
}

TEST(Scheduler, ARankWithoutSequencesHearsTheSameStep) {
  SchedulerLimits limits = ranks(3, 2);
  limits.num_drafts = 2;
  limits.run_mtp = true;
  Request observed = request(9, 5);
  observed.observe = static_cast<uint8_t>(msg::Observe::Router);
  FakeRanks world(limits, {observed, request(4, 5)});

  for (int i = 0; i < 3; ++i) {
    for (int rank = 0; rank < 3; ++rank) {
      const msg::StepPlanT& plan = world.plan(rank);
      EXPECT_EQ(plan.step, i + 1);
      EXPECT_EQ(plan.decode, i > 0);
      EXPECT_EQ(plan.max_rows, i == 0 ? 9 : 3);
      EXPECT_EQ(plan.max_sequences, 1);
      EXPECT_EQ(plan.run_mtp, true);
      EXPECT_EQ(plan.draft_steps, 2);
      EXPECT_EQ(plan.observe, static_cast<uint8_t>(msg::Observe::Router));
      EXPECT_EQ(plan.candidates, world.plan(0).candidates);
    }
    EXPECT_THAT(world.requests_on(2), IsEmpty());
    world.step();
  }
}

TEST(Scheduler, RanksOfOneAttentionGroupRunTheSameSequences) {
  SchedulerLimits limits = ranks(4, 4);
  limits.attn_tp_size = 2;
  FakeRanks world(limits, std::vector<Request>(3, request(3, 2)));

  for (int rank = 0; rank < 2; ++rank) EXPECT_THAT(world.requests_on(rank), ElementsAre(0, 2));
  for (int rank = 2; rank < 4; ++rank) EXPECT_THAT(world.requests_on(rank), ElementsAre(1));
  EXPECT_TRUE(world.sequence(0, 1).block_table == world.sequence(1, 1).block_table);

  world.step();

  EXPECT_EQ(world.sequence(1, 0).tokens, Ints{FakeRanks::default_token(3)});
  world.step();
  EXPECT_EQ(world.completion(2).tokens.size(), 2);  // once, though two ranks have said them
}

TEST(Scheduler, TheNextStepBeginsWhenEveryRankHasAnswered) {
  FakeRanks world(ranks(3, 3), std::vector<Request>(3, request(3, 2)));
  ASSERT_EQ(world.plans_sent(), 3);

  for (const int rank : {2, 0}) world.answer(rank, world.default_answer(rank));
  EXPECT_EQ(world.plans_sent(), 3);
  world.answer(1, world.default_answer(1));

  EXPECT_EQ(world.plans_sent(), 6);
  EXPECT_EQ(world.scheduler().step(), 2);
}

// ---- requests that come and go ------------------------------------------------------------------

TEST(Scheduler, ARequestJoinsAtTheNextStep) {
  FakeRanks world(one_rank(), {request(3, 5)});
  world.step();

  EXPECT_EQ(world.scheduler().submit(request(4, 5)), 1);
  EXPECT_THAT(world.requests_on(0), ElementsAre(0));
  world.step();

  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 1));
  EXPECT_EQ(world.sequence(0, 0).tokens.size(), 1);
  EXPECT_EQ(world.sequence(0, 1).tokens.size(), 4);
}

TEST(Scheduler, RestsWithoutRequestsUntilOneComes) {
  FakeRanks world(one_rank(), {request(3, 1)});
  world.step();
  ASSERT_TRUE(world.finished());
  ASSERT_EQ(world.plans_sent(), 1);

  world.scheduler().submit(request(3, 1));
  EXPECT_EQ(world.plans_sent(), 1);  // only advance() sends
  world.scheduler().advance();
  world.scheduler().advance();  // a step is under way

  EXPECT_EQ(world.plans_sent(), 2);
  EXPECT_FALSE(world.finished());
}

TEST(Scheduler, ACancelledRequestLeavesAtTheEndOfItsStepAndSaysNoMore) {
  FakeRanks world(one_rank(), {request(3, 5), request(3, 5)});
  world.step();

  world.scheduler().cancel(0);
  world.scheduler().cancel(0);
  world.scheduler().release(0);
  world.step();

  EXPECT_THAT(world.requests_on(0), ElementsAre(1));
  EXPECT_THAT(world.tokens_said, ElementsAre("0: 1003", "1: 1003", "0:  cancelled", "1: 1004"));
  EXPECT_THROW(world.completion(0), std::out_of_range);
}

TEST(Scheduler, ACancelledRequestThatWaitsNeverRuns) {
  SchedulerLimits limits = one_rank();
  limits.batch_size = 1;
  FakeRanks world(limits, {request(3, 1), request(3, 1), request(3, 1)});

  world.scheduler().cancel(1);
  world.step();

  EXPECT_THAT(world.requests_on(0), ElementsAre(2));
}

// ---- prompts ------------------------------------------------------------------------------------

TEST(Scheduler, APromptIsReadInPiecesOfMaxPrefillTokens) {
  SchedulerLimits limits = one_rank();
  limits.max_prefill_tokens = 4;
  FakeRanks world(limits, {request(10, 2)});

  EXPECT_EQ(world.sequence(0, 0).first_position, 0);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{10, 11, 12, 13}));
  EXPECT_FALSE(world.sequence(0, 0).sample);
  EXPECT_EQ(world.sequence(0, 0).next_token, 14);
  world.step();
  EXPECT_EQ(world.sequence(0, 0).first_position, 4);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{14, 15, 16, 17}));
  EXPECT_FALSE(world.sequence(0, 0).sample);
  EXPECT_EQ(world.sequence(0, 0).next_token, 18);
  world.step();
  EXPECT_EQ(world.sequence(0, 0).first_position, 8);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{18, 19}));
  EXPECT_TRUE(world.sequence(0, 0).sample);
  EXPECT_FALSE(world.plan(0).decode);
  EXPECT_THAT(world.tokens_said, IsEmpty());
  world.step();
  EXPECT_EQ(world.sequence(0, 0).first_position, 10);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{1010}));
  EXPECT_TRUE(world.plan(0).decode);
  world.step();

  EXPECT_THAT(world.tokens_said, ElementsAre("0: 1010", "0: 1011 length"));
  EXPECT_EQ(world.scheduler().statistics().prefill_steps, 3);
  EXPECT_EQ(world.scheduler().statistics().prefill_tokens, 10);
  EXPECT_EQ(world.scheduler().statistics().decode_steps, 1);
  EXPECT_EQ(world.scheduler().statistics().decode_tokens, 1);
}

TEST(Scheduler, PromptsShareTheTokensOfAStep) {
  SchedulerLimits limits = one_rank();
  limits.max_prefill_tokens = 4;
  FakeRanks world(limits, {request(3, 9), request(3, 9), request(2, 9)});

  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 1));
  EXPECT_EQ(world.sequence(0, 0).tokens.size(), 3);
  EXPECT_EQ(world.sequence(0, 1).tokens.size(), 1);
  EXPECT_EQ(world.plan(0).max_rows, 4);
  world.step();
  EXPECT_THAT(world.requests_on(0), ElementsAre(0, 1, 2));
  EXPECT_EQ(world.sequence(0, 0).tokens.size(), 1);  // decodes meanwhile
  EXPECT_EQ(world.sequence(0, 1).first_position, 1);
  EXPECT_EQ(world.sequence(0, 1).tokens.size(), 2);
  EXPECT_EQ(world.sequence(0, 2).tokens.size(), 2);
  EXPECT_EQ(world.plan(0).max_rows, 5);
  EXPECT_FALSE(world.plan(0).decode);
  world.step();
  EXPECT_EQ(world.plan(0).max_rows, 3);
  EXPECT_TRUE(world.plan(0).decode);
}

TEST(Scheduler, AScoredPromptMakesNoTokens) {
  FakeRanks world(one_rank(), {request(5, 0)});
  world.step();

  EXPECT_TRUE(world.finished());
  EXPECT_THAT(world.tokens_said, ElementsAre("0:  length"));
}

TEST(Scheduler, RefusesAPromptLongerThanTheModelsPositions) {
  SchedulerLimits limits = one_rank();
  limits.max_positions = 8;
  try {
    FakeRanks world(limits, {request(8, 1), request(9, 1)});
    FAIL() << "submitted";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("prompt 1"), HasSubstr("9 tokens"),
                                    HasSubstr("max_position_embeddings 8")));
  }
}

}  // namespace
}  // namespace troupe::actors
