#include "launcher/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace troupe::launcher {
namespace {

using testing::HasSubstr;
using testing::Not;

// One request that decoded 4 tokens in 3 steps.
LaunchResult result_with(int64_t drafted, int64_t accepted) {
  LaunchResult result;
  actors::Completion completion;
  completion.tokens = {1, 2, 3, 4};
  completion.verify_steps = 3;
  completion.drafted = drafted;
  completion.accepted = accepted;
  result.completions = {completion};
  result.statistics.decode_steps = 3;
  result.statistics.decode_s = 0.006;
  result.statistics.decode_tokens = 3;
  return result;
}

TEST(RunMetrics, CountWhatWasAcceptedOfDraftsAndInForwards) {
  const RunMetrics metrics = run_metrics(result_with(6, 3));

  EXPECT_DOUBLE_EQ(metrics.avg_accept_rate, 0.5);
  EXPECT_DOUBLE_EQ(metrics.avg_accept_length, 2);
  EXPECT_DOUBLE_EQ(metrics.avg_equivalent_time_ms, 1);
}

TEST(RunMetrics, AreShownForDraftsEvenWhenNoneWasAccepted) {
  EXPECT_THAT(metrics_text(4, result_with(3, 0)),
              HasSubstr("MTP: accept rate 0.000, accept length 1.00, equivalent time 2.00 ms"));
  EXPECT_THAT(metrics_text(4, result_with(0, 0)), Not(HasSubstr("MTP")));
}

}  // namespace
}  // namespace troupe::launcher
