#include "comm/trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "comm/arena_layout.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "comm/trace_ring.h"
#include "world.h"

namespace troupe::comm {
namespace {

Arena traced_arena(int world_size, int64_t num_events) {
  return Arena::create({.world_size = world_size,
                        .comm_buffer_bytes = kSmallSlot * 2 * world_size,
                        .trace = {.num_events = num_events, .num_layers = 2, .num_experts = 8}});
}

std::vector<TraceEvent> of_kind(const TraceSnapshot& snapshot, TraceEvent::Kind kind) {
  std::vector<TraceEvent> events;
  std::ranges::copy_if(snapshot.events, std::back_inserter(events),
                       [&](const TraceEvent& event) { return event.kind == kind; });
  return events;
}

int64_t total(std::span<const TraceEvent> events, auto field) {
  return std::accumulate(events.begin(), events.end(), int64_t{0},
                         [&](int64_t sum, const TraceEvent& event) {
                           return sum + int64_t(std::invoke(field, event));
                         });
}

TEST(Trace, HasSpansInTheOrderTheyBeganWithWhatTheyBelongTo) {
  const Arena arena = traced_arena(1, 16);
  Trace trace(arena, 0);
  trace.set_step(7);
  {
    const TraceSpan step(&trace, TraceOp::kDecode);
    trace.set_track(TraceTrack::kMoe);
    trace.set_layer(3);
    const TraceSpan gate(&trace, TraceOp::kGate, 5, 320);
  }

  const std::vector<TraceEvent> events = read_trace(arena, 0, TickClock(arena)).events;

  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].op(), TraceOp::kDecode);
  EXPECT_EQ(events[0].track, TraceTrack::kRank);
  EXPECT_EQ(events[0].layer, -1);
  EXPECT_EQ(events[1].op(), TraceOp::kGate);
  EXPECT_EQ(events[1].track, TraceTrack::kMoe);
  EXPECT_EQ(events[1].layer, 3);
  EXPECT_EQ(events[1].step, 7u);
  EXPECT_EQ(events[1].tokens, 5u);
  EXPECT_EQ(events[1].bytes, 320);
  EXPECT_LE(events[0].start, events[1].start);
  EXPECT_LE(events[1].start, events[1].end);
  EXPECT_LE(events[1].end, events[0].end);
}

TEST(Trace, IsOnTheMonotonicClock) {
  const Arena arena = traced_arena(1, 16);
  Trace trace(arena, 0);
  const int64_t before = now_ns();
  { const TraceSpan span(&trace, TraceOp::kGate); }
  const int64_t after = now_ns();

  const TraceEvent event = read_trace(arena, 0, TickClock(arena)).events.at(0);

  const int64_t slack = 1'000'000'000;  // any other clock is further off
  EXPECT_GE(event.start, before - slack);
  EXPECT_LE(event.end, after + slack);
}

TEST(Trace, KeepsTheLastEventsAndCountsTheOthers) {
  const Arena arena = traced_arena(1, 16);
  Trace trace(arena, 0);
  const TraceSpan lost(&trace, TraceOp::kDecode);
  for (int64_t i = 0; i < 20; ++i) trace.count(TraceCounter::kRunning, i);
  {
    TraceSpan overwritten(&trace, TraceOp::kGate);
    for (int64_t i = 20; i < 40; ++i) trace.count(TraceCounter::kRunning, i);
  }

  const TraceSnapshot snapshot = read_trace(arena, 0, TickClock(arena));

  EXPECT_EQ(snapshot.forgotten, 42u - 15u);
  ASSERT_EQ(snapshot.events.size(), 15u) << "of 16: the oldest could be half overwritten";
  for (int64_t i = 0; i < 15; ++i) {
    EXPECT_EQ(snapshot.events[i].kind, TraceEvent::kCounter);
    EXPECT_EQ(snapshot.events[i].end, 25 + i) << "the end of a lost span writes nowhere";
  }
}

TEST(Trace, ShowsASpanThatNeverEndedAsOpen) {
  const Arena arena = traced_arena(1, 16);
  Trace trace(arena, 0);
  trace.begin(TraceOp::kAttend, 1, 0, -1);

  EXPECT_EQ(read_trace(arena, 0, TickClock(arena)).events.at(0).end, 0);
}

TEST(Trace, BeginsAnewWithAnotherRecording) {
  Arena arena = traced_arena(1, 16);
  Communicator rank(arena, 0, std::chrono::seconds(1), {.traced = false});
  EXPECT_EQ(rank.trace(), nullptr) << "rings, and nothing that is recorded";
  const auto record_one = [&](uint32_t recording, int64_t value) {
    rank.record(recording);
    rank.trace()->count(TraceCounter::kRunning, value);
    rank.count_sent(0, 100);
  };

  record_one(1, 5);
  record_one(1, 6);
  EXPECT_EQ(read_trace(arena, 0, TickClock(arena)).events.size(), 2u) << "the same goes on";
  record_one(2, 7);
  rank.record(0);
  rank.count_sent(0, 1000);

  const TraceSnapshot snapshot = read_trace(arena, 0, TickClock(arena));
  EXPECT_EQ(rank.trace(), nullptr);
  ASSERT_EQ(snapshot.events.size(), 1u);
  EXPECT_EQ(snapshot.events[0].end, 7);
  EXPECT_EQ(snapshot.sent_bytes.at(0), 100u) << "of this recording alone";
  clear_traces(arena);
  EXPECT_TRUE(read_trace(arena, 0, TickClock(arena)).events.empty());
}

TEST(Trace, RingsOfRanksAndLauncherAreApart) {
  const Arena arena = traced_arena(2, 16);
  for (const int ring : {0, 1, 2}) {
    Trace trace(arena, ring);
    for (int i = 0; i < 30; ++i) trace.count(TraceCounter::kRunning, 100 * ring + i);
    trace.add_sent_bytes(1, 1000 + ring);
    trace.set_layer(1);
    trace.add_expert_rows(7, 2000 + ring);
  }

  for (const int ring : {0, 1, 2}) {
    const TraceSnapshot snapshot = read_trace(arena, ring, TickClock(arena));
    EXPECT_EQ(snapshot.events.back().end, 100 * ring + 29);
    EXPECT_EQ(snapshot.sent_bytes, (std::vector<uint64_t>{0, uint64_t(1000 + ring)}));
    EXPECT_EQ(snapshot.expert_rows.back(), 2000u + ring);
  }
}

TEST(Trace, WithoutOneASpanIsNothing) {
  { const TraceSpan span(nullptr, TraceOp::kGate); }
  Arena untraced = make_arena(1);
  Communicator communicator(untraced, 0, kPatient);
  EXPECT_EQ(communicator.trace(), nullptr);
}

TEST(Trace, OperationsHaveNamesOfTheirOwn) {
  std::vector<std::string> names;
  for (int op = 0; op < kTraceOps; ++op) names.push_back(trace_op(static_cast<TraceOp>(op)).name);
  std::ranges::sort(names);
  EXPECT_EQ(std::ranges::adjacent_find(names), names.end());
  for (const Operation operation :
       {Operation::kBarrier, Operation::kAllToAllV, Operation::kCombine})
    EXPECT_TRUE(std::ranges::binary_search(names, operation_name(operation)));
}

TEST(Trace, CollectivesAreSpansAndWaitsLieInsideThem) {
  Arena arena = traced_arena(2, 1024);
  std::vector<int64_t> wait_ns(2);
  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1});
    std::vector<float> values(100);
    for (int i = 0; i < 20; ++i) {
      if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      group.all_reduce(std::span(values));
    }
    wait_ns[rank] = communicator.wait_ns();
  });
  ASSERT_EQ(errors, all_fine(2));

  const TraceSnapshot snapshot = read_trace(arena, 0, TickClock(arena));
  int64_t calls = 0, waited = 0;
  TraceEvent collective;
  for (const TraceEvent& event : snapshot.events) {
    if (event.op() == TraceOp::kAllReduce) {
      collective = event;
      ++calls;
      EXPECT_EQ(event.bytes, 400);
    } else {
      ASSERT_EQ(event.op(), TraceOp::kWait);
      EXPECT_EQ(event.peer, 1);
      EXPECT_GE(event.start, collective.start);
      EXPECT_LE(event.end, collective.end);
      waited += event.end - event.start;
    }
  }
  EXPECT_EQ(calls, 20);
  EXPECT_EQ(snapshot.sent_bytes, (std::vector<uint64_t>{0, 20 * 400}));
  // The report's figure is the same time on another clock, read inside the span.
  EXPECT_GE(waited + 1000, wait_ns[0] / 1000 * 999);
}

template <class Exchange>
void expect_arrows_of_a_dispatch() {
  constexpr int kWorld = 3, kTokens = 4, kTopk = 2, kExperts = 6;
  Arena arena = traced_arena(kWorld, 1024);
  const auto errors = run_threads(kWorld, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 5, ranks_up_to(kWorld));
    Exchange exchange(group, {.num_experts = kExperts,
                              .topk = kTopk,
                              .row_bytes = 16,
                              .result_bytes = 16,
                              .max_tokens = kTokens});
    // Rank 0 sends its tokens to rank 1 alone, rank 1 to ranks 0 and 2, rank 2 has none.
    const std::vector<std::vector<int32_t>> choices = {{2, 3, 3, 2, 2, 3, 3, 2}, {0, 4, 5, 1}, {}};
    const std::vector<std::byte> rows(kTokens * 16);
    for (int round = 0; round < 3; ++round) {
      exchange.start_dispatch({.rows = rows.data(),
                               .row_stride = 16,
                               .count = static_cast<int64_t>(choices[rank].size()) / kTopk,
                               .topk_ids = choices[rank],
                               .weights = {}});
      exchange.finish_dispatch();
      exchange.start_combine();
      exchange.finish_combine();
      exchange.release();
    }
  });
  ASSERT_EQ(errors, all_fine(kWorld));

  std::vector<std::vector<TraceEvent>> sent, received;
  for (int rank = 0; rank < kWorld; ++rank) {
    const TraceSnapshot snapshot = read_trace(arena, rank, TickClock(arena));
    sent.push_back(of_kind(snapshot, TraceEvent::kSent));
    received.push_back(of_kind(snapshot, TraceEvent::kReceived));
  }
  EXPECT_EQ(sent[0].size(), 3u);
  EXPECT_EQ(sent[1].size(), 6u);
  EXPECT_EQ(sent[2].size(), 0u);
  for (int rank = 0; rank < kWorld; ++rank)
    for (const TraceEvent& arrow : sent[rank]) {
      const auto end = std::ranges::find_if(received[arrow.peer], [&](const TraceEvent& other) {
        return other.peer == rank && other.end == arrow.end && other.group == arrow.group;
      });
      ASSERT_NE(end, received[arrow.peer].end());
      EXPECT_LE(arrow.start, end->start);
      EXPECT_EQ(arrow.tokens, end->tokens);
      EXPECT_EQ(arrow.bytes, end->bytes);
    }
  const auto tokens = [](const auto& arrows) { return total(arrows, &TraceEvent::tokens); };
  EXPECT_EQ(tokens(sent[0]) + tokens(sent[1]),
            tokens(received[0]) + tokens(received[1]) + tokens(received[2]));
}

TEST(Trace, ArrowsOfAFusedDispatchMeet) { expect_arrows_of_a_dispatch<FusedExchange>(); }

TEST(Trace, ArrowsOfADoubleRoutingDispatchMeet) { expect_arrows_of_a_dispatch<DoubleRouting>(); }

TEST(Trace, OfARankThatWasKilledCanBeRead) {
  const Arena arena = traced_arena(1, 64);
  Processes processes(1, [&](int) {
    Trace trace(arena, 0);
    for (int i = 0; i < 100; ++i) {
      const TraceSpan span(&trace, TraceOp::kGate, i);
    }
    trace.begin(TraceOp::kAttend, 100, 0, -1);
    ::raise(SIGKILL);
  });
  EXPECT_EQ(processes.join().at(0), "killed by signal 9");

  const TraceSnapshot snapshot = read_trace(arena, 0, TickClock(arena));
  ASSERT_EQ(snapshot.events.size(), 63u);
  EXPECT_EQ(snapshot.events.back().op(), TraceOp::kAttend);
  EXPECT_EQ(snapshot.events.back().end, 0);
  EXPECT_EQ(snapshot.events[61].tokens, 99u);
}

}  // namespace
}  // namespace troupe::comm
