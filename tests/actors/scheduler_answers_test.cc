// What the scheduler makes of the ranks' answers: drafts, ends, observed rows, answers that cannot
// be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fake_ranks.h"
#include "scheduler_cases.h"

namespace troupe::actors {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Ints = std::vector<int32_t>;

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
