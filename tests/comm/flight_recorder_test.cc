#include "comm/flight_recorder.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>

#include "comm/arena_layout.h"
#include "world.h"

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;

TEST(FlightRecorder, KeepsTheLastCollectivesInTheirOrder) {
  Arena arena = make_arena(2);

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 7, {0, 1});
    for (int i = 0; i < 300; ++i) group.barrier();
  });

  EXPECT_EQ(errors, all_fine(2));
  const auto records = arena.flights(1);
  ASSERT_EQ(records.size(), kFlightRecords);
  int64_t last_end = 0;
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(records[i].operation, Operation::kBarrier);
    EXPECT_EQ(records[i].group, 7u);
    EXPECT_EQ(records[i].leader, 0);
    EXPECT_EQ(records[i].sequence, 300 - kFlightRecords + 1 + i);
    EXPECT_GE(records[i].start_ns, last_end);
    EXPECT_GE(records[i].end_ns, records[i].start_ns);
    last_end = records[i].end_ns;
  }
}

TEST(FlightRecorder, HasAHandleOpenUntilItIsWaitedFor) {
  Arena arena = make_arena(1);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0});
  std::vector<float> sum(10), other(5);

  Pending pending = group.start_all_reduce(sum);
  group.all_reduce(std::span(other));
  const auto before = arena.flights(0);
  pending.wait();
  const auto after = arena.flights(0);

  ASSERT_EQ(before.size(), 2u);
  EXPECT_EQ(before[0].bytes, 40u);
  EXPECT_EQ(before[0].end_ns, 0);
  EXPECT_GT(before[1].end_ns, 0);
  EXPECT_EQ(before[1].bytes, 20u);
  ASSERT_EQ(after.size(), 2u);
  EXPECT_GE(after[0].end_ns, after[1].end_ns);
}

TEST(FlightRecorder, OneCallInTwoPartsIsOneRecord) {
  Arena arena = make_arena(1);
  FlightRecorder recorder(arena, 0);

  for (int part = 0; part < 2; ++part) {
    recorder.begin(Operation::kDispatch, 3, 0, 5, 100);
    recorder.end();
  }
  recorder.begin(Operation::kCombine, 3, 0, 5, 100);

  const auto records = arena.flights(0);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_GT(records[0].end_ns, 0);
  EXPECT_EQ(records[1].operation, Operation::kCombine);
  EXPECT_EQ(records[1].end_ns, 0);
}

TEST(FlightRecorder, IsReadWholeWhileItIsWritten) {
  Arena arena = make_arena(1);
  std::atomic<bool> ended{false};
  std::thread writer([&] {
    FlightRecorder recorder(arena, 0);
    for (uint64_t i = 1; i <= 100'000; ++i) {
      recorder.begin(Operation::kBarrier, static_cast<uint32_t>(i), 0, i, i);
      recorder.end();
    }
    ended = true;
  });

  size_t seen = 0;
  while (!ended) {
    for (const FlightRecord& record : arena.flights(0)) {
      ASSERT_EQ(record.bytes, record.sequence);
      ASSERT_EQ(record.group, static_cast<uint32_t>(record.sequence));
      ++seen;
    }
  }
  writer.join();

  EXPECT_GT(seen + arena.flights(0).size(), 0u);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(FlightTable, SaysWhoArrivedWhoDidNotAndWhatTheOthersDo) {
  Arena arena = make_arena(4);
  std::atomic<int> failed{0};
  const auto errors = run_threads(4, [&](int rank) {
    Communicator communicator(arena, rank, milliseconds(rank == 0 ? 100 : 60'000));
    ProcessGroup three(communicator, 5, rank < 3 ? std::vector<int>{0, 1, 2} : std::vector<int>{3});
    three.barrier();
    if (rank == 3) return;
    communicator.enter_step(Stage::kDecode, 14);
    communicator.enter_layer(3);
    if (rank == 2) {
      while (failed < 2) std::this_thread::yield();
      return;
    }
    struct CountAtExit {
      std::atomic<int>& count;
      ~CountAtExit() { ++count; }
    } counter{failed};
    std::vector<float> data(16);
    three.all_reduce(std::span(data));
  });
  EXPECT_TRUE(has(errors[0], "waited 100 ms for rank 2"));

  const auto lines = lines_of(flight_table(arena, 0));

  ASSERT_EQ(lines.size(), 5u);
  EXPECT_TRUE(has(lines[0], "all_reduce of group 5 (#2)")) << lines[0];
  for (const int rank : {0, 1}) {
    EXPECT_TRUE(has(lines[rank + 1], "arrived ")) << lines[rank + 1];
    EXPECT_TRUE(has(lines[rank + 1], "all_reduce of group 5 (#2), 64 bytes")) << lines[rank + 1];
    EXPECT_TRUE(has(lines[rank + 1], "waiting for rank 2")) << lines[rank + 1];
  }
  EXPECT_TRUE(has(lines[3], "not arrived")) << lines[3];
  EXPECT_TRUE(has(lines[3], "barrier of group 5 (#1), left ")) << lines[3];
  EXPECT_TRUE(has(lines[3], "decode step 14, layer 3")) << lines[3];
  EXPECT_TRUE(has(lines[4], "not seen in it")) << "a group of the same id: " << lines[4];
}

TEST(FlightTable, OfADeadRankIsAboutTheCallInWhichOthersWaitForIt) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, milliseconds(1));
  ProcessGroup group(communicator, 0, {0, 1});
  EXPECT_THROW(group.barrier(), std::exception);

  const auto lines = lines_of(flight_table(arena, 1));

  ASSERT_EQ(lines.size(), 3u);
  EXPECT_TRUE(has(lines[0], "barrier of group 0 (#1)"));
  EXPECT_TRUE(has(lines[1], "arrived "));
  EXPECT_TRUE(has(lines[2], "not arrived"));
}

TEST(FlightTable, TellsTheCombineOfARoundFromItsDispatch) {
  const Arena arena = make_arena(2);
  FlightRecorder first(arena, 0), second(arena, 1);
  first.begin(Operation::kDispatch, 6, 0, 700, 64);
  first.end();
  first.begin(Operation::kCombine, 6, 0, 700, 64);
  second.begin(Operation::kDispatch, 6, 0, 700, 64);
  arena.activity(0).operation = Operation::kCombine;
  arena.activity(0).group = 6;
  arena.activity(0).sequence = 700;

  const auto lines = lines_of(flight_table(arena, 0));

  ASSERT_EQ(lines.size(), 3u);
  EXPECT_TRUE(has(lines[0], "combine of group 6 (#700)")) << lines[0];
  EXPECT_TRUE(has(lines[1], "arrived ")) << lines[1];
  EXPECT_FALSE(has(lines[1], "not arrived")) << lines[1];
  EXPECT_TRUE(has(lines[2], "not arrived")) << lines[2];
}

TEST(Arrivals, AreListedInRangesAndOfManyMissingRanksTheFirstAreDescribed) {
  const Arena arena = make_arena(20);
  const FlightRecord call{
      .operation = Operation::kAllReduce, .group = 3, .leader = 1, .sequence = 9};
  for (const int rank : {1, 2, 3, 5}) FlightRecorder(arena, rank).begin(call.operation, 3, 1, 9, 8);
  FlightRecorder(arena, 4).begin(Operation::kAllReduce, 3, 1, 8, 8);  // the one before
  FlightRecorder(arena, 6).begin(Operation::kAllReduce, 3, 0, 9, 8);  // another group of that id
  arena.activity(6).stage = Stage::kDecode;
  arena.activity(6).step = 14;
  arena.activity(6).layer = 3;
  std::vector<int> group(19);
  std::iota(group.begin(), group.end(), 1);

  EXPECT_EQ(arrivals_text(arena, call, group),
            " Arrived: 1-3, 5. Not arrived: 4 (starting), 6 (decode step 14, layer 3), "
            "7 (starting), 8 (starting), and 9-19.");
  EXPECT_EQ(arrivals_text(arena, call, std::vector{5, 1}), " Arrived: 1, 5.");
  EXPECT_EQ(arrivals_text(arena, call, std::vector{6}),
            " Arrived: none. Not arrived: 6 (decode step 14, layer 3).");
}

TEST(FlightTable, IsEmptyWhenNobodyHasCommunicated) {
  EXPECT_EQ(flight_table(make_arena(2), 0), "");
}

}  // namespace
}  // namespace troupe::comm
