#include "actors/draft_policy.h"

#include <gtest/gtest.h>

namespace troupe::actors {
namespace {

constexpr int kTrial = DraftPolicy::kTrialSteps + 1;  // with the step that leads over

// What a step with so many drafts brings and costs, if each is accepted with chance `rate`.
struct Model {
  double rate, step_s, draft_s;
  int sequences = 1;

  double tokens(int drafts) const {
    double sum = 1, chance = 1;
    for (int i = 0; i < drafts; ++i) sum += chance *= rate;
    return sum;
  }
  double seconds(int drafts) const { return step_s + draft_s * drafts; }
  // Tokens are whole numbers: counted in thousandths of a sequence.
  void run(DraftPolicy& policy, int steps) const {
    for (int i = 0; i < steps; ++i)
      policy.on_decode_step(static_cast<int64_t>(1000 * tokens(policy.steps())), 1000 * sequences,
                            seconds(policy.steps()));
  }
  int best(int most) const {
    int best = 0;
    for (int n = 1; n <= most; ++n)
      if (tokens(n) / seconds(n) > tokens(best) / seconds(best)) best = n;
    return best;
  }
};

TEST(DraftPolicy, FindsTheNumberThatPaysMost) {
  for (const double rate : {0.05, 0.4, 0.7, 0.95})
    for (const double draft_s : {0.02, 0.2, 0.6}) {
      const Model model{rate, 1, draft_s};
      DraftPolicy policy(4, true);
      model.run(policy, 1 + 5 * kTrial);
      EXPECT_EQ(policy.steps(), model.best(4)) << rate << " " << draft_s;
    }
}

TEST(DraftPolicy, TurnsDraftsThatDoNotPayOffAfterOneTrial) {
  const Model model{0.3, 1, 0.5};
  DraftPolicy policy(4, true);

  for (int step = 0; step < 1 + kTrial; ++step) {
    EXPECT_EQ(policy.steps(), 1);
    model.run(policy, 1);
  }

  for (int step = 0; step < 500; ++step) {
    EXPECT_EQ(policy.steps(), 0);
    model.run(policy, 1);
  }
  EXPECT_NEAR(*policy.rate(0), 1.0, 1e-3);
  EXPECT_NEAR(*policy.rate(1), 1.3 / 1.5, 1e-3);
  EXPECT_EQ(policy.rate(2), std::nullopt);
}

TEST(DraftPolicy, IsNotMisledByASlowStep) {
  const Model good{0.9, 1, 0.05};
  DraftPolicy policy(1, true);
  good.run(policy, 3);
  policy.on_decode_step(1900, 1000, 1000);  // something else had the machine

  good.run(policy, 2 * kTrial);

  EXPECT_EQ(policy.steps(), 1);
}

TEST(DraftPolicy, FollowsAWorldThatChanges) {
  const Model good{0.9, 1, 0.05}, bad{0.1, 1, 0.5};
  DraftPolicy policy(4, true);
  good.run(policy, 200);
  ASSERT_EQ(policy.steps(), 4);

  bad.run(policy, 5 * DraftPolicy::kHoldSteps);  // some holds, each with trials after it

  EXPECT_EQ(policy.steps(), 0);
}

TEST(DraftPolicy, KnowsWhatPaysForFewSequencesAndForMany) {
  const Model alone{0.9, 1, 0.05, 1}, crowded{0.9, 1, 1.5, 16};
  DraftPolicy policy(4, true);
  alone.run(policy, 1 + 5 * kTrial);
  ASSERT_EQ(policy.steps(), 4);

  crowded.run(policy, 1 + 6 * kTrial);

  EXPECT_EQ(policy.steps(), 0);
  for (int i = 0; i < 20; ++i) {  // nothing is tried again
    alone.run(policy, 5);
    EXPECT_EQ(policy.steps(), 4);
    crowded.run(policy, 5);
    EXPECT_EQ(policy.steps(), 0);
  }
}

TEST(DraftPolicy, AFixedNumberStays) {
  DraftPolicy policy(3, false);
  Model{0.0, 1, 9}.run(policy, 5000);
  EXPECT_EQ(policy.steps(), 3);
  EXPECT_EQ(policy.rate(3), std::nullopt);
}

}  // namespace
}  // namespace troupe::actors
