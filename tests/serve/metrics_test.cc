#include "serve/metrics.h"

#include <gtest/gtest.h>

namespace troupe::serve {
namespace {

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

TEST(Histogram, CountsUpToEachBound) {
  constexpr double kBounds[] = {0.1, 1.0};
  Histogram histogram(kBounds);
  for (const double value : {0.1, 0.5, 0.5, 3.0}) histogram.add(value);
  histogram.add(0.25, 2);

  EXPECT_EQ(histogram.text("t", "m=\"x\""),
            "t_bucket{m=\"x\",le=\"0.1\"} 1\n"
            "t_bucket{m=\"x\",le=\"1\"} 5\n"
            "t_bucket{m=\"x\",le=\"+Inf\"} 6\n"
            "t_sum{m=\"x\"} 4.6\n"
            "t_count{m=\"x\"} 6\n");
}

TEST(Metrics, TellsWhatItWasTold) {
  Metrics metrics;
  actors::StepStatistics steps;
  steps.admitted_tokens = 10;
  steps.reused_tokens = 4;
  steps.drafted_at[0] = 8;
  steps.accepted_at[0] = 6;
  metrics.on_step(steps, {.waiting = 2, .running = 3, .blocks_in_use = 5, .blocks = 20});
  metrics.on_first_token(0.03);
  metrics.on_more_tokens(0, 1);
  metrics.on_more_tokens(0.06, 2);  // a step with an accepted draft: 30 ms each
  actors::Completion completion;
  completion.tokens = {7, 8, 9};
  completion.reason = actors::FinishReason::kStop;
  completion.first_token_s = 0.03;
  completion.last_token_s = 0.09;
  metrics.on_end(completion, 10);
  metrics.on_refused();
  const std::string text = metrics.text("tiny");

  for (const char* line :
       {"troupe:num_requests_running{model_name=\"tiny\"} 3",
        "troupe:num_requests_waiting{model_name=\"tiny\"} 2",
        "troupe:kv_cache_usage_perc{model_name=\"tiny\"} 0.25",
        "troupe:prefix_cache_hits_total{model_name=\"tiny\"} 4",
        "troupe:generation_tokens_total{model_name=\"tiny\"} 3",
        "troupe:requests_refused_total{model_name=\"tiny\"} 1",
        "troupe:request_success_total{model_name=\"tiny\",finished_reason=\"stop\"} 1",
        "troupe:spec_decode_num_accepted_tokens_per_pos_total{model_name=\"tiny\",position=\"0\"} "
        "6",
        "troupe:time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"0.02\"} 0",
        "troupe:time_to_first_token_seconds_bucket{model_name=\"tiny\",le=\"0.04\"} 1",
        "troupe:inter_token_latency_seconds_bucket{model_name=\"tiny\",le=\"0.05\"} 2",
        "troupe:inter_token_latency_seconds_count{model_name=\"tiny\"} 2",
        "troupe:request_time_per_output_token_seconds_bucket{model_name=\"tiny\",le=\"0.05\"} 1"})
    EXPECT_TRUE(has_line(text, line)) << line << "\n" << text;
}

}  // namespace
}  // namespace troupe::serve
