#include "launcher/operation_profile.h"

#include <gtest/gtest.h>

namespace troupe::launcher {
namespace {

using comm::TraceOp;

constexpr int64_t kMs = 1000000;

TraceSet all_names(int ranks) {
  TraceSet set;
  for (int op = 0; op < comm::kTraceOps; ++op)
    set.names.push_back({comm::trace_op(static_cast<TraceOp>(op)).name, "compute"});
  set.ranks.resize(ranks);
  return set;
}

SpanRecord span(TraceOp op, int32_t step, int64_t start_ms, int64_t end_ms, int64_t self_ms) {
  return {.start_ns = start_ms * kMs,
          .end_ns = end_ms * kMs,
          .self_ns = self_ms * kMs,
          .name = static_cast<int32_t>(op),
          .step = step};
}

const OperationCost& cost(const OperationProfile& profile, TraceOp op) {
  for (const OperationCost& found : profile.operations)
    if (found.name == comm::trace_op(op).name) return found;
  throw std::logic_error("no such operation");
}

TEST(OperationProfile, AddsUpToTheStepsThatWereAskedFor) {
  TraceSet set = all_names(1);
  set.ranks[0].spans = {span(TraceOp::kPrefill, 6, 0, 100, 100),     // of another kind
                        span(TraceOp::kDecode, 7, 100, 110, 10),     // too early
                        span(TraceOp::kDecode, 8, 200, 210, 1),      //
                        span(TraceOp::kExperts, 8, 201, 207, 6),     //
                        span(TraceOp::kAttend, 8, 207, 210, 3),      //
                        span(TraceOp::kAwaitPlan, 8, 210, 220, 10),  // between the steps
                        span(TraceOp::kDecode, 9, 220, 240, 4),
                        span(TraceOp::kExperts, 9, 221, 231, 10),
                        span(TraceOp::kExperts, 9, 232, 238, 6)};

  const OperationProfile profile =
      operation_profile(set, {.kind = TraceOp::kDecode, .first = 8}, {});

  EXPECT_EQ(profile.steps, 2);
  EXPECT_DOUBLE_EQ(profile.step_ms, 15);
  ASSERT_EQ(profile.operations.size(), 3u);
  EXPECT_EQ(profile.operations[0].name, "experts");
  EXPECT_DOUBLE_EQ(profile.operations[0].calls, 1.5);
  EXPECT_DOUBLE_EQ(profile.operations[0].ms, 11);
  double sum = 0;
  for (const OperationCost& operation : profile.operations) sum += operation.ms;
  EXPECT_DOUBLE_EQ(sum, profile.step_ms);
}

TEST(OperationProfile, SetsTheWorkOfAllRanksAgainstTheMeanTimeOfOne) {
  TraceSet set = all_names(2);
  set.ranks[0].spans = {span(TraceOp::kDecode, 1, 0, 10, 6), span(TraceOp::kLmHead, 1, 0, 4, 4)};
  set.ranks[1].spans = {span(TraceOp::kDecode, 1, 0, 10, 8), span(TraceOp::kLmHead, 1, 0, 2, 2)};
  OperationWorks works;
  works[TraceOp::kLmHead].weight_bytes = 60e6;
  works[TraceOp::kLmHead].operations[0] = 3e9;

  const OperationProfile profile =
      operation_profile(set, {.kind = TraceOp::kDecode, .first = 1}, works);

  const OperationCost& head = cost(profile, TraceOp::kLmHead);
  EXPECT_DOUBLE_EQ(head.ms, 3);
  EXPECT_DOUBLE_EQ(head.share, 0.3);
  EXPECT_DOUBLE_EQ(head.gb_per_s(), 20);       // 60 MB in 3 ms
  EXPECT_DOUBLE_EQ(head.gflop_per_s(), 1000);  // 3 GFLOP in 3 ms
  EXPECT_EQ(cost(profile, TraceOp::kDecode).mb, 0);
}

TEST(OperationProfile, HasNoOperationsWhereTheTraceHasNoSuchStep) {
  TraceSet set = all_names(1);
  set.ranks[0].spans = {span(TraceOp::kPrefill, 1, 0, 10, 10)};

  EXPECT_TRUE(
      operation_profile(set, {.kind = TraceOp::kDecode, .first = 1}, {}).operations.empty());
}

}  // namespace
}  // namespace troupe::launcher
