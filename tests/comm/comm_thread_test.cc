// A comm thread's errors and ends. What it moves is in collectives_test and moe_exchange_test.
#include "comm/comm_thread.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "world.h"

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;

constexpr CommOptions kThreaded{.mode = CommMode::kThread};

template <class Body>
CommThread::Job job_of(Body& body) {
  return {[](void* object) { (*static_cast<Body*>(object))(); }, &body};
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const RankError& error) {
    return error.what();
  }
  return "no error";
}

TEST(CommThread, RunsJobsInTheOrderInWhichTheyWereHandedOver) {
  CommThread thread;
  std::vector<int> order;
  auto first = [&] { order.push_back(1); };
  auto second = [&] { order.push_back(2); };

  for (uint32_t round = 0; round < 2 * CommThread::kMaxJobs; ++round) {
    thread.hand_over(job_of(first));
    thread.wait(thread.hand_over(job_of(second)));
  }

  std::vector<int> expected;
  for (uint32_t round = 0; round < 2 * CommThread::kMaxJobs; ++round)
    expected.insert(expected.end(), {1, 2});
  EXPECT_EQ(order, expected);
}

TEST(CommThread, ThrowsAJobsErrorWhereItIsWaitedForAndRunsNoMore) {
  CommThread thread;
  bool ran = false;
  auto fails = [] { throw RankError("the cause"); };
  auto runs = [&] { ran = true; };

  const uint32_t failed = thread.hand_over(job_of(fails));
  const uint32_t behind = thread.hand_over(job_of(runs));

  EXPECT_EQ(error_of([&] { thread.wait(failed); }), "the cause");
  EXPECT_EQ(error_of([&] { thread.wait(behind); }), "the cause");
  EXPECT_EQ(error_of([&] { thread.wait_for_all(); }), "the cause");
  EXPECT_FALSE(ran);
}

MoeExchangeShape small_shape() {
  return {.num_experts = 2, .topk = 1, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};
}

TEST(CommThread, OfARankWhosePeerDoesNotComeReportsItOnTheMainThread) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, milliseconds(50), kThreaded);
  ProcessGroup group(communicator, 6, {0, 1});
  FusedExchange exchange(group, small_shape());

  exchange.start_dispatch({});

  const std::string error = error_of([&] { exchange.finish_dispatch(); });
  EXPECT_NE(error.find("dispatch of group 6 (#1)"), std::string::npos) << error;
  EXPECT_NE(error.find("waited 50 ms for rank 1"), std::string::npos) << error;
  EXPECT_TRUE(error.starts_with(arena.failure(0))) << error;
  EXPECT_FALSE(arena.failure(0).empty());
  EXPECT_EQ(error_of([&] { group.barrier(); }), error);
}

TEST(CommThread, ReportsAWrongExpertOnTheMainThread) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient, kThreaded);
  ProcessGroup group(communicator, 0, {0, 1});
  FusedExchange exchange(group, small_shape());
  const std::vector<std::byte> row(64);
  const std::vector<int32_t> ids{2};

  exchange.start_dispatch(
      {.rows = row.data(), .row_stride = 64, .count = 1, .topk_ids = ids, .weights = {}});

  EXPECT_THROW(exchange.finish_dispatch(), std::logic_error);
}

// Its peers never come, its deadline is a minute away.
template <class Start>
void leave_while_waiting(const Start& start) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient, kThreaded);
  ProcessGroup group(communicator, 0, {0, 1});
  start(group, [&] {
    while (arena.rank_state(0).sleeping_for == kAwake) std::this_thread::yield();
  });
}

TEST(CommThread, EndsWithARoundThatNobodyWaitsForAnyMore) {
  leave_while_waiting([](ProcessGroup& group, const auto& until_it_waits) {
    FusedExchange exchange(group, small_shape());
    exchange.start_dispatch({});
    until_it_waits();
  });
  leave_while_waiting([](ProcessGroup& group, const auto& until_it_waits) {
    DoubleRouting exchange(group, small_shape());
    exchange.start_dispatch({});
    until_it_waits();
  });
}

TEST(CommThread, EndsWithAHandleThatIsDropped) {
  leave_while_waiting([](ProcessGroup& group, const auto& until_it_waits) {
    std::vector<std::byte> in(10), out(20);
    const Pending dropped = group.start_all_gather(in, out);
    until_it_waits();
  });
}

}  // namespace
}  // namespace troupe::comm
