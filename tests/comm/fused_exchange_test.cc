#include "comm/fused_exchange.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "world.h"

namespace troupe::comm {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// [count * topk] experts first, first + 1, ... for each token.
std::vector<int32_t> same_choice(const MoeExchangeShape& shape, int64_t count, int32_t first) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count * shape.topk; ++i)
    ids.push_back(first + static_cast<int32_t>(i) % shape.topk);
  return ids;
}

TEST(FusedExchange, TakesAsManyTokensAsFitAWindowWithTheirResults) {
  const auto taken = [&](const MoeExchangeShape& shape, int32_t first_expert) {
    Arena arena = make_arena(2);  // windows of 8192 bytes
    Communicator communicator(arena, 0, kPatient);
    ProcessGroup group(communicator, 0, {0, 1});
    FusedExchange exchange(group, shape);
    const std::vector<std::byte> rows(1'000 * shape.row_bytes);
    const std::vector<float> weights(1'000 * shape.topk);
    exchange.start_dispatch({.rows = rows.data(),
                             .row_stride = static_cast<int64_t>(shape.row_bytes),
                             .count = 1'000,
                             .topk_ids = same_choice(shape, 1'000, first_expert),
                             .weights = weights});
    return exchange.taken();
  };
  MoeExchangeShape shape{
      .num_experts = 8, .topk = 4, .row_bytes = 256, .result_bytes = 200, .max_tokens = 500};

  // A token has a record of 16 bytes, a row of 256 and here 4 results of 256; there is room for
  // 15 records, as if every token had one result: 64 + 256 + 6 * (256 + 4 * 256) <= 8192.
  EXPECT_EQ(taken(shape, 4), 6);
  // Two of its experts are on each rank: 64 + 256 + 10 * (256 + 2 * 256) <= 8192.
  EXPECT_EQ(taken(shape, 2), 10);
  // Own tokens need no window.
  EXPECT_EQ(taken(shape, 0), 500);
  // A result in the place of its row, records of 32 bytes: 64 + 28 * 32 + 28 * 256 <= 8192.
  shape.answer = Answer::kPerRank;
  EXPECT_EQ(taken(shape, 4), 28);
}

TEST(FusedExchange, AloneNeedsNoWindow) {
  Arena arena = make_arena(1);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0});
  const MoeExchangeShape shape{
      .num_experts = 4, .topk = 2, .row_bytes = 10'000, .result_bytes = 10'000, .max_tokens = 77};
  const std::vector<std::byte> rows(90 * shape.row_bytes);

  FusedExchange exchange(group, shape);

  exchange.start_dispatch({.rows = rows.data(),
                           .row_stride = 10'000,
                           .count = 90,
                           .topk_ids = same_choice(shape, 90, 1),
                           .weights = {}});
  exchange.finish_dispatch();

  EXPECT_EQ(exchange.taken(), 77);
  EXPECT_TRUE(exchange.more());
}

TEST(FusedExchange, NamesTheBufferThatIsNeededAndItIsEnough) {
  const MoeExchangeShape shape{
      .num_experts = 32, .topk = 8, .row_bytes = 14'336, .result_bytes = 28'672, .max_tokens = 64};
  const auto make = [&](size_t mb) {
    Arena arena = Arena::create({.world_size = 16, .comm_buffer_bytes = mb * kMiB});
    Communicator communicator(arena, 0, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(16));
    return FusedExchange(group, shape).max_tokens_to_a_rank();
  };

  // A row and 2 results (the experts of a rank) are 71680 bytes, from 16 ranks more than 1 MiB.
  try {
    make(1);
    FAIL() << "one token cannot fit";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("comm_buffer_mb: 1 MiB"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("NEEDED comm_buffer_mb: 2"), std::string::npos);
  }
  EXPECT_EQ(make(2), 3);  // with one result each
}

TEST(FusedExchange, LeavesOwnRowsInPlaceAndAlignsTheOthers) {
  Arena arena = make_arena(2);
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 2, .row_bytes = 10, .result_bytes = 10, .max_tokens = 4};

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1});
    FusedExchange exchange(group, shape);
    const std::vector<std::byte> rows(20);
    const std::vector<int32_t> ids{0, 1, 1, 0};
    exchange.start_dispatch(
        {.rows = rows.data(), .row_stride = 10, .count = 2, .topk_ids = ids, .weights = {}});
    exchange.finish_dispatch();
    for (const MoeExchange::Arrival& arrival : exchange.arrivals(0)) {
      const auto address = [](const std::byte* p) { return reinterpret_cast<uintptr_t>(p); };
      const bool in_place = arrival.row == rows.data() || arrival.row == rows.data() + 10;
      require(in_place == (arrival.source == rank), "rows in place");
      require(in_place || address(arrival.row) % 64 == 0, "aligned rows");
      require(address(exchange.result_row(arrival)) % 64 == 0, "aligned results");
    }
    require(communicator.bytes_sent() == 2 * (10 + 4), "bytes_sent: rows and ids, not to itself");
    exchange.start_combine();
    exchange.finish_combine();
    exchange.release();
  });

  EXPECT_EQ(errors, all_fine(2));
}

TEST(FusedExchange, LetsGroupsWithoutASharedRankWorkInsideARound) {
  Arena arena = make_arena(4);
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 1, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};

  const auto errors = run_threads(4, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup experts(communicator, rank % 2, {rank % 2, rank % 2 + 2});
    ProcessGroup tensor(communicator, 2 + rank / 2, {rank / 2 * 2, rank / 2 * 2 + 1});
    FusedExchange exchange(experts, shape);
    for (int round = 0; round < 50; ++round) {
      std::vector<float> early(5'000, 1.0f), data(5'000, 2.0f);
      exchange.start_dispatch({});
      Pending pending = tensor.start_all_reduce(early);
      exchange.finish_dispatch();
      tensor.all_reduce(data);
      pending.wait();
      exchange.start_combine();
      exchange.finish_combine();
      exchange.release();
      require(data[4'999] == 4.0f && early[4'999] == 2.0f, "all_reduce");
    }
  });

  EXPECT_EQ(errors, all_fine(4));
}

TEST(FusedExchange, RefusesCollectivesOfSharedRanksInsideARound) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 1, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};
  FusedExchange exchange(group, shape);

  exchange.start_dispatch({});

  EXPECT_THROW(group.barrier(), std::logic_error);
}

TEST(FusedExchange, RefusesTokensThatNameAnExpertTwiceOrNone) {
  Arena arena = make_arena(1);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0});
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 2, .row_bytes = 8, .result_bytes = 8, .max_tokens = 1};
  const std::vector<std::byte> row(8);

  for (const std::vector<int32_t>& ids : {std::vector{0, 2}, std::vector{-1, 0}, std::vector{1, 1}})
    EXPECT_THROW(
        FusedExchange(group, shape)
            .start_dispatch(
                {.rows = row.data(), .row_stride = 8, .count = 1, .topk_ids = ids, .weights = {}}),
        std::logic_error);
}

// Rank 1 reads a dispatch of rank 0 after `corrupt` has been at it.
std::string error_of_corrupt_dispatch(const std::function<void(Arena&)>& corrupt) {
  Arena arena = make_arena(2);
  Communicator sender(arena, 0, kPatient), receiver(arena, 1, kPatient);
  ProcessGroup sending(sender, 0, {0, 1}), receiving(receiver, 0, {0, 1});
  const MoeExchangeShape shape{
      .num_experts = 4, .topk = 2, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};
  FusedExchange one(sending, shape), other(receiving, shape);
  const std::vector<std::byte> rows(64);
  one.start_dispatch({.rows = rows.data(),
                      .row_stride = 64,
                      .count = 1,
                      .topk_ids = same_choice(shape, 1, 2),
                      .weights = {}});
  corrupt(arena);
  other.start_dispatch({});
  try {
    other.finish_dispatch();
  } catch (const RankError& error) {
    return error.what();
  }
  return "";
}

TEST(FusedExchange, ReportsACorruptDispatch) {
  const auto ids = [](Arena& arena) {
    return reinterpret_cast<int32_t*>(arena.payload(1, 0, 0) + sizeof(Arena::Slot));
  };
  const auto header = [](Arena& arena) -> Arena::Slot& { return arena.window(1, 0).slots[0]; };
  const auto error = error_of_corrupt_dispatch;

  EXPECT_EQ(error([](Arena&) {}), "");
  EXPECT_NE(error([&](Arena& a) { ids(a)[0] = 1; }).find("expert 1, which is not here"),
            std::string::npos);
  EXPECT_NE(error([&](Arena& a) { ids(a)[1] = 1'000'000; }), "");
  EXPECT_NE(error([&](Arena& a) { ids(a)[1] = -1; }).find("1 ids and says 2"), std::string::npos);
  EXPECT_NE(error([&](Arena& a) { header(a).counts[0] = uint64_t{1} << 63; }), "");
  EXPECT_NE(error([&](Arena& a) { header(a).counts[1] = 3; }), "");
  EXPECT_NE(error([&](Arena& a) { header(a).total_bytes += 64; }), "");
  EXPECT_NE(error([&](Arena& a) { header(a).operation = Operation::kCombine; }), "");
  EXPECT_NE(error([&](Arena& a) { header(a).phase = 2; }), "");
}

// Rank 0 has dispatched; what rank 1 answers is not what it says.
TEST(FusedExchange, ReportsAnAnswerToAnotherDispatch) {
  Arena arena = make_arena(2);
  Communicator asking(arena, 0, kPatient), answering(arena, 1, kPatient);
  ProcessGroup one(asking, 0, {0, 1}), other(answering, 0, {0, 1});
  const MoeExchangeShape shape{
      .num_experts = 4, .topk = 2, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};
  FusedExchange asks(one, shape), answers(other, shape);
  asks.start_dispatch({});
  answers.start_dispatch({});
  asks.finish_dispatch();
  answers.finish_dispatch();
  answers.start_combine();
  asks.start_combine();
  reinterpret_cast<Arena::Slot*>(arena.payload(1, 0, 0))->sequence += 1;

  try {
    asks.finish_combine();
    FAIL() << "the answer belongs to another dispatch";
  } catch (const RankError& error) {
    EXPECT_NE(std::string(error.what()).find("combine of group 0 (#2)"), std::string::npos);
  }
  EXPECT_NO_THROW(answers.finish_combine());
}

TEST(FusedExchange, NamesARankKilledInsideARound) {
  const MoeExchangeShape shape{
      .num_experts = 8, .topk = 4, .row_bytes = 100, .result_bytes = 36, .max_tokens = 50};
  for (int attempt = 0; attempt < 3; ++attempt) {
    Arena arena = make_arena(4);
    Processes processes(4, [&](int rank) {
      Communicator communicator(arena, rank, std::chrono::milliseconds(300));
      ProcessGroup group(communicator, 0, ranks_up_to(4));
      FusedExchange exchange(group, shape);
      for (;;) {
        exchange.start_dispatch({});
        exchange.finish_dispatch();
        exchange.start_combine();
        exchange.finish_combine();
        exchange.release();
      }
    });
    await_collective(arena, 2, 5);
    processes.kill(2);

    const auto errors = processes.join();

    for (const int rank : {0, 1, 3})
      EXPECT_NE(errors[rank].find("rank 2"), std::string::npos) << errors[rank];
  }
}

}  // namespace
}  // namespace troupe::comm
