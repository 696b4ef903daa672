#include "actors/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "base/error.h"
#include "fake_ranks.h"

namespace troupe::actors {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Ints = std::vector<int32_t>;

constexpr int kFirstToken = 10;  // prompts are 10, 11, 12, ...

Request request(int prompt_tokens, int max_new_tokens) {
  Request r;
  r.max_new_tokens = max_new_tokens;
  for (int i = 0; i < prompt_tokens; ++i) r.prompt.push_back(kFirstToken + i);
  return r;
}

SchedulerLimits one_rank() {
  return {.world_size = 1,
          .batch_size = 4,
          .max_prefill_tokens = 100,
          .max_positions = 1000,
          .block_size = 4,
          .blocks_per_dp_rank = 1000};
}

SchedulerLimits ranks(int world_size, int batch_size) {
  SchedulerLimits limits = one_rank();
  limits.world_size = world_size;
  limits.batch_size = batch_size;
  return limits;
}

SchedulerLimits with_drafts(int num_drafts) {
  SchedulerLimits limits = one_rank();
  limits.num_drafts = num_drafts;
  limits.run_mtp = true;
  return limits;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const RankError& error) {
    return error.what();
  }
  return "no RankError";
}

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

// ---- blocks -------------------------------------------------------------------------------------

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

// ---- drafts and ends ----------------------------------------------------------------------------

TEST(Scheduler, ContinuesAfterTheAcceptedDraftsWithNewOnes) {
  FakeRanks world(with_drafts(2), {request(3, 100)});

  world.answer(0, world.answer_of(0, {{{50}, {51, 99}}}));
  EXPECT_EQ(world.sequence(0, 0).first_position, 3);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{50, 51, 99}));
  EXPECT_EQ(world.sequence(0, 0).num_drafts, 2);

  world.answer(0, world.answer_of(0, {{{51, 60}, {61, 62}}}));  // one was right
  EXPECT_EQ(world.sequence(0, 0).first_position, 5);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{60, 61, 62}));

  world.answer(0, world.answer_of(0, {{{61, 62, 63}, {64, 65}}}));  // both
  EXPECT_EQ(world.sequence(0, 0).first_position, 8);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{63, 64, 65}));

  world.answer(0, world.answer_of(0, {{{70}, {71, 72}}}));  // none
  EXPECT_EQ(world.sequence(0, 0).first_position, 9);
  EXPECT_EQ(world.sequence(0, 0).tokens, (Ints{70, 71, 72}));

  const Completion& completion = world.completion(0);
  EXPECT_EQ(completion.tokens, (Ints{50, 51, 60, 61, 62, 63, 70}));
  EXPECT_EQ(completion.verify_steps, 3);
  EXPECT_EQ(completion.drafted, 6);
  EXPECT_EQ(completion.accepted, 3);
}

TEST(Scheduler, StopsAtAStopTokenAmongTheAcceptedOnes) {
  Request r = request(3, 100);
  r.stop_ids = {52, 77};
  FakeRanks world(with_drafts(3), {r});

  world.answer(0, world.answer_of(0, {{{50}, {51, 52, 53}}}));
  world.answer(0, world.answer_of(0, {{{51, 52, 53, 54}, {55, 56, 57}}}));

  EXPECT_TRUE(world.finished());
  EXPECT_THAT(world.tokens_said, ElementsAre("0: 50", "0: 51 52 stop"));
  EXPECT_EQ(world.completion(0).reason, FinishReason::kStop);
}

TEST(Scheduler, StopsAtMaxNewTokensAmongTheAcceptedOnes) {
  FakeRanks world(with_drafts(3), {request(3, 3)});

  world.answer(0, world.answer_of(0, {{{50}, {51, 52, 53}}}));
  world.answer(0, world.answer_of(0, {{{51, 52, 53, 54}, {55, 56, 57}}}));

  EXPECT_TRUE(world.finished());
  EXPECT_THAT(world.tokens_said, ElementsAre("0: 50", "0: 51 52 length"));
}

TEST(Scheduler, AStopTokenInTheLastPlaceIsAStop) {
  Request r = request(3, 2);
  r.stop_ids = {FakeRanks::default_token(4)};
  FakeRanks world(one_rank(), {r});
  world.step();
  world.step();

  EXPECT_THAT(world.tokens_said, ElementsAre("0: 1003", "0: 1004 stop"));
}

TEST(Scheduler, StopsWhenTheModelsPositionsAreUsedUp) {
  SchedulerLimits limits = with_drafts(3);
  limits.max_positions = 6;
  FakeRanks world(limits, {request(3, 100), request(6, 100)});

  world.answer(0, world.answer_of(0, {{{50}, {51, 52, 53}}, {{80}, {81, 82, 83}}}));
  EXPECT_THAT(world.requests_on(0), ElementsAre(0));  // no room after a prompt of 6
  world.answer(0, world.answer_of(0, {{{51, 52, 53, 54}, {55, 56, 57}}}));

  EXPECT_TRUE(world.finished());
  EXPECT_THAT(world.tokens_said, ElementsAre("0: 50", "1:  length", "0: 51 52 length"));
}

// ---- what is observed ---------------------------------------------------------------------------

Request observed(int prompt_tokens, int max_new_tokens, msg::Observe what) {
  Request r = request(prompt_tokens, max_new_tokens);
  r.observe = static_cast<uint8_t>(what);
  return r;
}

TEST(Scheduler, CollectsTheLogProbabilitiesOfPromptTokens) {
  SchedulerLimits limits = with_drafts(2);
  limits.max_prefill_tokens = 4;
  FakeRanks world(limits, {request(3, 5), observed(5, 4, msg::Observe::LogProbs), request(2, 5)});
  while (!world.finished()) world.step();

  // The default answer says -position in every row, also in those of drafts and of others.
  EXPECT_THAT(world.completion(0).log_probs, IsEmpty());
  EXPECT_THAT(world.completion(1).log_probs, ElementsAre(0, -1, -2, -3));
  EXPECT_THAT(world.completion(2).log_probs, IsEmpty());
}

TEST(Scheduler, ShowsWhereTheObservedRowsLie) {
  SchedulerLimits limits = ranks(2, 3);
  limits.max_prefill_tokens = 4;
  FakeRanks world(limits, {request(3, 9), observed(6, 0, msg::Observe::Logits),
                           observed(2, 0, msg::Observe::Logits)});
  world.step();
  world.step();

  EXPECT_THAT(world.rows_shown, ElementsAre("2@0: rows 3+1 at 0", "1@1: rows 0+4 at 0",
                                            "2@0: rows 1+1 at 1", "1@1: rows 0+2 at 4"));
}

TEST(Scheduler, ShowsEachRankOfAnAttentionGroupItsSliceOfTheRows) {
  SchedulerLimits limits = ranks(2, 3);
  limits.attn_tp_size = 2;
  FakeRanks world(limits, {observed(3, 0, msg::Observe::Logits), request(1, 9),
                           observed(3, 0, msg::Observe::Logits)});
  world.step();  // rows: 3 of request 0, 1 of request 1, 3 of request 2; cut at row 3

  EXPECT_THAT(world.rows_shown, ElementsAre("0@0: rows 0+3 at 0", "2@1: rows 1+3 at 0"));
}

TEST(Scheduler, AsksForAsManyCandidatesAsAnySequenceCanNeed) {
  const Request greedy = request(2, 9);
  Request greedy_of_50 = greedy, top_5 = greedy, top_40 = greedy, any = greedy;
  greedy_of_50.top_k = 50;
  for (Request* r : {&top_5, &top_40, &any}) r->temperature = 1;
  top_5.top_k = 5;
  top_40.top_k = 40;

  EXPECT_EQ(FakeRanks(one_rank(), {greedy, greedy_of_50}).plan(0).candidates, 1);
  EXPECT_EQ(FakeRanks(ranks(2, 2), {top_5, top_40}).plan(0).candidates, 40);
  EXPECT_EQ(FakeRanks(one_rank(), {greedy, any, top_5}).plan(0).candidates, 0);
  EXPECT_EQ(FakeRanks(one_rank(), {observed(2, 0, msg::Observe::Logits)}).plan(0).candidates, 0);
}

// ---- answers that cannot be ---------------------------------------------------------------------

TEST(Scheduler, AnAnswerToAnotherStepIsAnErrorThatNamesBoth) {
  FakeRanks world(ranks(2, 2), std::vector<Request>(2, request(3, 5)));
  world.step();
  msg::StepDoneT late = world.default_answer(1);
  late.step = 1;

  EXPECT_EQ(error_of([&] { world.answer(1, late); }), "rank 1 answered step 1 during step 2");
}

TEST(Scheduler, AnAnswerFromARankOutsideTheWorldIsAnError) {
  FakeRanks world(ranks(2, 2), std::vector<Request>(2, request(3, 5)));
  for (const int rank : {-1, 2, 1 << 30})
    EXPECT_THAT(error_of([&] { world.answer(rank, world.default_answer(0)); }),
                HasSubstr(fmt::format("rank {} ", rank)));
}

TEST(Scheduler, ASecondAnswerIsAnErrorAndDoesNotStandInForAnotherRanks) {
  FakeRanks world(ranks(2, 2), std::vector<Request>(2, request(3, 5)));
  const msg::StepDoneT done = world.default_answer(1);
  world.answer(1, done);

  EXPECT_EQ(error_of([&] { world.answer(1, done); }), "rank 1 answered step 1 without being asked");
}

TEST(Scheduler, AnAnswerAfterTheLastStepIsAnError) {
  FakeRanks world(one_rank(), {request(3, 1)});
  const msg::StepDoneT done = world.default_answer(0);
  world.answer(0, done);
  ASSERT_TRUE(world.finished());

  EXPECT_EQ(error_of([&] { world.answer(0, done); }), "rank 0 answered step 1 without being asked");
}

// Two sequences: one verifies two drafts, the other is in the middle of its prompt and observed.
TEST(Scheduler, AnAnswerOfTheWrongShapeIsAnErrorThatNamesTheRankAndTheStep) {
  using Done = msg::StepDoneT;
  const std::vector<std::pair<const char*, std::function<void(Done&)>>> changes = {
      {"too few counts", [](Done& d) { d.counts.pop_back(); }},
      {"too many counts", [](Done& d) { d.counts.push_back(0); }},
      {"no counts", [](Done& d) { d.counts.clear(); }},
      {"a sampled sequence without tokens", [](Done& d) { d.counts[0] = 0; }},
      {"more tokens than drafts allow",
       [](Done& d) {
         d.counts[0] = 4;
         d.tokens.assign(4, 5);
       }},
      {"a token in the middle of a prompt",
       [](Done& d) {
         d.counts[1] = 1;
         d.tokens.push_back(5);
       }},
      {"a negative count", [](Done& d) { d.counts[0] = -1; }},
      {"a huge count", [](Done& d) { d.counts[0] = INT32_MAX; }},
      {"too few tokens", [](Done& d) { d.counts[0] = 2; }},
      {"too many tokens", [](Done& d) { d.tokens.push_back(5); }},
      {"too few drafts", [](Done& d) { d.drafts.pop_back(); }},
      {"too many drafts", [](Done& d) { d.drafts.push_back(5); }},
      {"too few log_probs", [](Done& d) { d.log_probs.pop_back(); }},
      {"no log_probs", [](Done& d) { d.log_probs.clear(); }},
      {"too many log_probs", [](Done& d) { d.log_probs.push_back(-1); }},
  };
  SchedulerLimits limits = with_drafts(2);
  limits.max_prefill_tokens = 4;
  for (const auto& [what, change] : changes) {
    FakeRanks world(limits, {request(4, 50), observed(9, 0, msg::Observe::LogProbs)});
    world.step();
    ASSERT_THAT(world.requests_on(0), ElementsAre(0, 1));
    msg::StepDoneT done = world.default_answer(0);
    change(done);

    EXPECT_EQ(error_of([&] { world.answer(0, done); }),
              "rank 0's answer to step 2 has the wrong shape")
        << what;
  }
}

}  // namespace
}  // namespace troupe::actors
