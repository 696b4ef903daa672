#include "comm/moe_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "world.h"

namespace troupe::comm {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

enum class Routing { kRandom, kUniform, kOneExpert };

// What every rank dispatches in one round: known to all, so that each checks what it receives.
struct Batch {
  int64_t tokens = 0;
  std::vector<int32_t> topk_ids;  // [tokens, topk]
};

Batch make_batch(const MoeExchangeShape& shape, Routing routing, int64_t max_tokens, int round,
                 int rank) {
  std::mt19937 random(round * 1000 + rank);
  Batch batch;
  batch.tokens = (round + rank) % 3 == 0 ? 0 : static_cast<int64_t>(random() % (max_tokens + 1));
  if (routing == Routing::kOneExpert) batch.tokens = max_tokens;
  std::vector<int32_t> experts = ranks_up_to(shape.num_experts);
  for (int64_t token = 0; token < batch.tokens; ++token) {
    if (routing == Routing::kRandom) std::shuffle(experts.begin(), experts.end(), random);
    // Everybody's first choice is expert 1; the others are its neighbours.
    const int64_t first = routing == Routing::kUniform ? token * shape.topk + rank : 1;
    for (int j = 0; j < shape.topk; ++j)
      batch.topk_ids.push_back(experts[(first + j) % shape.num_experts]);
  }
  return batch;
}

// A row that says who it is; the rest is a pattern.
std::vector<std::byte> make_row(size_t bytes, int round, int rank, int64_t token) {
  std::vector<std::byte> row(bytes);
  for (size_t i = 0; i < bytes; ++i)
    row[i] = std::byte(round * 131 + rank * 31 + token * 7 + static_cast<int64_t>(i * i));
  return row;
}

// What an expert makes of a row: every byte depends on the expert and on the row.
std::vector<std::byte> apply_expert(int expert, const std::byte* row,
                                    const MoeExchangeShape& shape) {
  std::vector<std::byte> result(shape.result_bytes);
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = std::byte(std::to_integer<int>(row[i % shape.row_bytes]) * 3 + expert * 17 +
                          static_cast<int>(i));
  return result;
}

void require_same(const std::byte* got, const std::vector<std::byte>& expected,
                  const std::string& what) {
  require(std::memcmp(got, expected.data(), expected.size()) == 0, what);
}

// The arrivals of one expert by the naive loop: all ranks, all their tokens, all their choices.
void check_arrivals(const MoeExchange& exchange, const MoeExchangeShape& shape,
                    const std::vector<Batch>& batches, int round, int local_expert) {
  const auto arrivals = exchange.arrivals(local_expert);
  size_t next = 0;
  for (int source = 0; source < static_cast<int>(batches.size()); ++source)
    for (size_t i = 0; i < batches[source].topk_ids.size(); ++i) {
      if (batches[source].topk_ids[i] != exchange.first_local_expert() + local_expert) continue;
      require(next < arrivals.size(), "an arrival is missing");
      require(arrivals[next].source == source, "arrivals are not in the order of ranks");
      const int64_t token = static_cast<int64_t>(i) / shape.topk;
      require_same(arrivals[next].row, make_row(shape.row_bytes, round, source, token),
                   "the wrong row arrived");
      ++next;
    }
  require(next == arrivals.size(), "too many arrivals");
}

void run_round(MoeExchange& exchange, ProcessGroup& group, const MoeExchangeShape& shape,
               Routing routing, int round) {
  std::vector<Batch> batches;
  for (int rank = 0; rank < group.size(); ++rank)
    batches.push_back(make_batch(shape, routing, exchange.max_tokens(), round, rank));
  const Batch& mine = batches[group.rank()];
  const size_t row_stride = shape.row_bytes + 5;
  std::vector<std::byte> rows(mine.tokens * row_stride + 1);
  for (int64_t token = 0; token < mine.tokens; ++token) {
    const auto row = make_row(shape.row_bytes, round, group.rank(), token);
    std::copy(row.begin(), row.end(), rows.begin() + token * row_stride);
  }

  exchange.start_dispatch(rows.data(), static_cast<int64_t>(row_stride), mine.tokens,
                          mine.topk_ids);
  exchange.finish_dispatch();
  int64_t total = 0;
  for (int e = 0; e < exchange.num_local_experts(); ++e) {
    check_arrivals(exchange, shape, batches, round, e);
    for (const MoeExchange::Arrival& arrival : exchange.arrivals(e)) {
      const auto result = apply_expert(exchange.first_local_expert() + e, arrival.row, shape);
      std::copy(result.begin(), result.end(), exchange.result_row(arrival));
      ++total;
    }
  }
  require(total == exchange.total_arrivals(), "total_arrivals");
  exchange.start_combine();
  exchange.finish_combine();

  for (int64_t token = 0; token < mine.tokens; ++token)
    for (int j = 0; j < shape.topk; ++j) {
      const int expert = mine.topk_ids[token * shape.topk + j];
      require_same(exchange.result(token, j),
                   apply_expert(expert, rows.data() + token * row_stride, shape),
                   fmt::format("result of token {} choice {}", token, j));
    }
  exchange.release();
}

// Rounds with collectives between them, on the same windows.
void run_rounds(Arena& arena, int rank, const MoeExchangeShape& shape, int rounds) {
  const int world_size = arena.shape().world_size;
  Communicator communicator(arena, rank, kPatient);
  ProcessGroup group(communicator, 0, ranks_up_to(world_size));
  MoeExchange exchange(group, shape);
  for (int round = 0; round < rounds; ++round) {
    const Routing routings[] = {Routing::kRandom, Routing::kUniform, Routing::kOneExpert};
    run_round(exchange, group, shape, routings[round % 3], round);
    if (round % 4 == 0) group.barrier();
    std::vector<float> data(3'000, 1.0f);  // several chunks, still on their way when round starts
    if (round % 4 == 1) {
      Pending pending = group.start_all_reduce(data);
      run_round(exchange, group, shape, Routing::kRandom, round);
      pending.wait();
      require(data[2'999] == static_cast<float>(world_size), "all_reduce before a round");
    }
  }
}

struct World {
  int size;
  MoeExchangeShape shape;
};

class MoeRounds : public testing::TestWithParam<World> {};

TEST_P(MoeRounds, EqualTheNaiveLoopInThreads) {
  const auto& [size, shape] = GetParam();
  Arena arena = make_arena(size);

  const auto errors = run_threads(size, [&](int rank) { run_rounds(arena, rank, shape, 60); });

  EXPECT_EQ(errors, all_fine(size));
}

TEST_P(MoeRounds, EqualTheNaiveLoopInProcesses) {
  const auto& [size, shape] = GetParam();
  Arena arena = make_arena(size);

  const auto errors = Processes(size, [&](int rank) { run_rounds(arena, rank, shape, 30); }).join();

  EXPECT_EQ(errors, all_fine(size));
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, MoeRounds,
    testing::Values(
        World{1,
              {.num_experts = 6, .topk = 3, .row_bytes = 40, .result_bytes = 72, .max_tokens = 9}},
        World{
            2,
            {.num_experts = 8, .topk = 3, .row_bytes = 64, .result_bytes = 128, .max_tokens = 50}},
        World{
            4,
            {.num_experts = 8, .topk = 4, .row_bytes = 100, .result_bytes = 36, .max_tokens = 50}},
        World{8,
              {.num_experts = 8, .topk = 2, .row_bytes = 10, .result_bytes = 20, .max_tokens = 5}},
        World{
            8,
            {.num_experts = 64, .topk = 8, .row_bytes = 7, .result_bytes = 64, .max_tokens = 99}}));

TEST(MoeExchange, LowersMaxTokensSoThatAllOfThemFitOneSlotInBothDirections) {
  Arena arena = make_arena(2);  // slots of 4096 bytes
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});
  const MoeExchangeShape by_rows{
      .num_experts = 2, .topk = 2, .row_bytes = 256, .result_bytes = 64, .max_tokens = 1'000};
  const MoeExchangeShape by_results{
      .num_experts = 8, .topk = 4, .row_bytes = 64, .result_bytes = 200, .max_tokens = 1'000};
  MoeExchangeShape few = by_rows;
  few.max_tokens = 3;

  EXPECT_EQ(MoeExchange(group, by_rows).max_tokens(), 15);    // 64 + 15 * 256 <= 4096
  EXPECT_EQ(MoeExchange(group, by_results).max_tokens(), 4);  // 4 * 4 * 256 == 4096
  EXPECT_EQ(MoeExchange(group, few).max_tokens(), 3);
}

TEST(MoeExchange, AloneNeedsNoWindow) {
  Arena arena = make_arena(1);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0});
  const MoeExchangeShape shape{
      .num_experts = 4, .topk = 2, .row_bytes = 10'000, .result_bytes = 10'000, .max_tokens = 77};

  EXPECT_EQ(MoeExchange(group, shape).max_tokens(), 77);
}

TEST(MoeExchange, NamesTheBufferThatIsNeededAndItIsEnough) {
  const MoeExchangeShape shape{
      .num_experts = 32, .topk = 8, .row_bytes = 14'336, .result_bytes = 28'672, .max_tokens = 64};
  const auto make = [&](size_t mb) {
    Arena arena = Arena::create({.world_size = 8, .comm_buffer_bytes = mb * kMiB});
    Communicator communicator(arena, 0, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(8));
    return MoeExchange(group, shape).max_tokens();
  };

  // Back come 4 results (the experts of a rank) of 28672 bytes: 2 * 8 * 114688 bytes = 1.75 MiB.
  try {
    make(1);
    FAIL() << "one token cannot fit";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("comm_buffer_mb: 1 MiB"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("NEEDED comm_buffer_mb: 2"), std::string::npos);
  }
  EXPECT_EQ(make(2), 1);
}

TEST(MoeExchange, LeavesOwnRowsInPlaceAndAlignsTheOthers) {
  Arena arena = make_arena(2);
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 2, .row_bytes = 10, .result_bytes = 10, .max_tokens = 4};

  const auto errors = run_threads(2, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {0, 1});
    MoeExchange exchange(group, shape);
    const std::vector<std::byte> rows(20);
    const std::vector<int32_t> ids{0, 1, 1, 0};
    exchange.start_dispatch(rows.data(), 10, 2, ids);
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

TEST(MoeExchange, LetsGroupsWithoutASharedRankWorkInsideARound) {
  Arena arena = make_arena(4);
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 1, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};

  const auto errors = run_threads(4, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup experts(communicator, rank % 2, {rank % 2, rank % 2 + 2});
    ProcessGroup tensor(communicator, 2 + rank / 2, {rank / 2 * 2, rank / 2 * 2 + 1});
    MoeExchange exchange(experts, shape);
    for (int round = 0; round < 50; ++round) {
      std::vector<float> early(5'000, 1.0f), data(5'000, 2.0f);
      exchange.start_dispatch(nullptr, 0, 0, {});
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

TEST(MoeExchange, RefusesCollectivesOfSharedRanksInsideARound) {
  Arena arena = make_arena(2);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0, 1});
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 1, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};
  MoeExchange exchange(group, shape);

  exchange.start_dispatch(nullptr, 0, 0, {});

  EXPECT_THROW(group.barrier(), std::logic_error);
}

TEST(MoeExchange, RefusesTokensThatNameAnExpertTwiceOrNone) {
  Arena arena = make_arena(1);
  Communicator communicator(arena, 0, kPatient);
  ProcessGroup group(communicator, 0, {0});
  const MoeExchangeShape shape{
      .num_experts = 2, .topk = 2, .row_bytes = 8, .result_bytes = 8, .max_tokens = 1};
  const std::vector<std::byte> row(8);

  for (const std::vector<int32_t>& ids : {std::vector{0, 2}, std::vector{-1, 0}})
    EXPECT_THROW(MoeExchange(group, shape).start_dispatch(row.data(), 8, 1, ids), std::logic_error);
}

// Rank 1 reads a dispatch of rank 0 after `corrupt` has been at it.
std::string error_of_corrupt_dispatch(const std::function<void(Arena&)>& corrupt) {
  Arena arena = make_arena(2);
  Communicator sender(arena, 0, kPatient), receiver(arena, 1, kPatient);
  ProcessGroup sending(sender, 0, {0, 1}), receiving(receiver, 0, {0, 1});
  const MoeExchangeShape shape{
      .num_experts = 4, .topk = 2, .row_bytes = 64, .result_bytes = 64, .max_tokens = 4};
  MoeExchange one(sending, shape), other(receiving, shape);
  const std::vector<std::byte> rows(64);
  one.start_dispatch(rows.data(), 64, 1, std::vector<int32_t>{2, 3});
  corrupt(arena);
  other.start_dispatch(nullptr, 0, 0, {});
  try {
    other.finish_dispatch();
  } catch (const RankError& error) {
    return error.what();
  }
  return "";
}

TEST(MoeExchange, ReportsACorruptDispatch) {
  const auto ids = [](Arena& arena) { return reinterpret_cast<int32_t*>(arena.payload(1, 0, 0)); };
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
}

TEST(MoeExchange, NamesARankKilledInsideARound) {
  const MoeExchangeShape shape{
      .num_experts = 8, .topk = 4, .row_bytes = 100, .result_bytes = 36, .max_tokens = 50};
  for (int attempt = 0; attempt < 3; ++attempt) {
    Arena arena = make_arena(4);
    Processes processes(4, [&](int rank) {
      Communicator communicator(arena, rank, std::chrono::milliseconds(300));
      ProcessGroup group(communicator, 0, ranks_up_to(4));
      MoeExchange exchange(group, shape);
      for (int round = 0;; ++round) run_round(exchange, group, shape, Routing::kRandom, round);
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
