#include "actors/draft_policy.h"

#include <gtest/gtest.h>

namespace troupe::actors {
namespace {

// What a step with so many drafts brings and costs, if each is accepted with chance `rate`.
struct Model {
  double rate, step_s, draft_s;
  double tokens(int drafts) const {
    double sum = 1, chance = 1;
    for (int i = 0; i < drafts; ++i) sum += chance *= rate;
    return sum;
  }
  double seconds(int drafts) const { return step_s + draft_s * drafts; }
  void run(DraftPolicy& policy, int steps) const {
    for (int i = 0; i < steps; ++i)
      policy.on_decode_step(tokens(policy.steps()), seconds(policy.steps()));
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
      model.run(policy, 5 * (DraftPolicy::kTrialSteps + 1));
      EXPECT_EQ(policy.steps(), model.best(4)) << rate << " " << draft_s;
    }
}

TEST(DraftPolicy, FollowsAWorldThatChanges) {
  const Model good{0.9, 1, 0.05}, bad{0.1, 1, 0.5};
  DraftPolicy policy(4, true);
  good.run(policy, 200);
  ASSERT_EQ(policy.steps(), 4);

  bad.run(policy, 5 * DraftPolicy::kHoldSteps / 2);  // a hold, trials, another, trials, a half

  EXPECT_EQ(policy.steps(), 0);
}

TEST(DraftPolicy, AFixedNumberStays) {
  DraftPolicy policy(3, false);
  Model{0.0, 1, 9}.run(policy, 5000);
  EXPECT_EQ(policy.steps(), 3);
}

}  // namespace
}  // namespace troupe::actors
