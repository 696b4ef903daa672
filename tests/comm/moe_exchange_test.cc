// Both forms of the exchange against a serial model: all ranks, all their tokens, all their
// choices.
#include "comm/moe_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

#include "base/error.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "world.h"

namespace troupe::comm {
namespace {

enum class Routing { kRandom, kUniform, kOneExpert, kFewExperts };
constexpr Routing kRoutings[] = {Routing::kRandom, Routing::kOneExpert, Routing::kUniform,
                                 Routing::kFewExperts};
enum class Form { kFused, kDoubleRouting };

std::unique_ptr<MoeExchange> make_exchange(Form form, ProcessGroup& group,
                                           const MoeExchangeShape& shape) {
  if (form == Form::kFused) return std::make_unique<FusedExchange>(group, shape);
  return std::make_unique<DoubleRouting>(group, shape);
}

// What a rank dispatches in one layer: known to all ranks, so that each checks what it receives.
struct Batch {
  int64_t tokens = 0;
  std::vector<int32_t> topk_ids;  // [tokens, topk]
};

Batch make_batch(const MoeExchangeShape& shape, Routing routing, int64_t max_tokens, int layer,
                 int rank) {
  std::mt19937 random(layer * 1000 + rank);
  Batch batch;
  batch.tokens = (layer + rank) % 3 == 0 ? 0 : static_cast<int64_t>(random() % (max_tokens + 1));
  if (routing == Routing::kOneExpert) batch.tokens = max_tokens;
  std::vector<int32_t> experts = ranks_up_to(shape.num_experts);
  for (int64_t token = 0; token < batch.tokens; ++token) {
    if (routing == Routing::kRandom) std::shuffle(experts.begin(), experts.end(), random);
    int64_t first = 1;  // everybody's first choice is expert 1; the others are its neighbours
    if (routing == Routing::kUniform) first = token * shape.topk + rank;
    if (routing == Routing::kFewExperts) first = random() % 2 * (shape.num_experts - shape.topk);
    for (int j = 0; j < shape.topk; ++j)
      batch.topk_ids.push_back(experts[(first + j) % shape.num_experts]);
  }
  return batch;
}

// A row that says who it is; the rest is a pattern.
std::vector<std::byte> make_row(size_t bytes, int layer, int rank, int64_t token) {
  std::vector<std::byte> row(bytes);
  for (size_t i = 0; i < bytes; ++i)
    row[i] =
        std::byte(layer * 131 + rank * 31 + token * 7 + token / 37 + static_cast<int64_t>(i * i));
  return row;
}

float make_weight(int64_t token, int expert) {
  return static_cast<float>((token * 5 + expert * 3) % 11);
}

// What an expert adds to a result: every byte depends on the expert, the row and its weight.
void add_expert(int expert, float weight, const std::byte* row, const MoeExchangeShape& shape,
                std::byte* result) {
  for (size_t i = 0; i < shape.result_bytes; ++i)
    result[i] = std::byte(std::to_integer<int>(result[i]) +
                          std::to_integer<int>(row[i % shape.row_bytes]) * 3 + expert * 17 +
                          static_cast<int>(weight) * 29 + static_cast<int>(i));
}

void pause_sometimes(std::mt19937& random) {
  if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
}

// One rank's share of one layer, round by round.
class Layer {
 public:
  Layer(MoeExchange& exchange, ProcessGroup& group, Routing routing, int64_t max_tokens, int number)
      : exchange_(exchange),
        shape_(exchange.shape()),
        group_(group),
        number_(number),
        random_(number * 77 + group.rank()),
        next_(exchange.num_local_experts(), std::vector<size_t>(group.size())) {
    for (int rank = 0; rank < group.size(); ++rank)
      batches_.push_back(make_batch(shape_, routing, max_tokens, number, rank));
    const Batch& mine = batches_[group.rank()];
    row_stride_ = shape_.row_bytes + 5;
    rows_.resize(mine.tokens * row_stride_ + 1);
    for (int64_t token = 0; token < mine.tokens; ++token) {
      const auto row = make_row(shape_.row_bytes, number, group.rank(), token);
      std::copy(row.begin(), row.end(), rows_.begin() + token * row_stride_);
      for (int j = 0; j < shape_.topk; ++j)
        weights_.push_back(make_weight(token, mine.topk_ids[token * shape_.topk + j]));
    }
  }

  int run() {
    const Batch& mine = batches_[group_.rank()];
    int64_t first = 0;
    int rounds = 0;
    do {
      const auto chosen = static_cast<size_t>(first * shape_.topk);
      exchange_.start_dispatch({.rows = rows_.data() + first * row_stride_,
                                .row_stride = static_cast<int64_t>(row_stride_),
                                .count = mine.tokens - first,
                                .topk_ids = std::span(mine.topk_ids).subspan(chosen),
                                .weights = std::span(weights_).subspan(chosen)});
      pause_sometimes(random_);
      exchange_.finish_dispatch();
      const int64_t taken = exchange_.taken();
      require(taken > 0 || first == mine.tokens, "no token was taken");
      require(taken <= shape_.max_tokens, "more tokens than a chunk were taken");
      serve();
      exchange_.start_combine();
      pause_sometimes(random_);
      exchange_.finish_combine();
      for (int64_t token = 0; token < taken; ++token) check_answers(first, token);
      exchange_.release();
      first += taken;
      ++rounds;
    } while (exchange_.more());
    require(first == mine.tokens, "tokens are left");
    check_all_arrived();
    return rounds;
  }

 private:
  bool per_rank() const { return shape_.answer == Answer::kPerRank; }

  // Computes all experts into buffers of its own, then writes the results.
  void serve() {
    const int64_t results = exchange_.first_result(group_.size());
    std::vector<std::byte> sums(results * shape_.result_bytes);
    int64_t arrivals = 0;
    for (int e = 0; e < exchange_.num_local_experts(); ++e)
      for (const MoeExchange::Arrival& arrival : exchange_.arrivals(e)) {
        check_arrival(e, arrival);
        const int64_t result = exchange_.first_result(arrival.source) + arrival.result_slot;
        add_expert(exchange_.first_local_expert() + e, arrival.weight, arrival.row, shape_,
                   sums.data() + result * shape_.result_bytes);
        ++arrivals;
      }
    require(arrivals == exchange_.total_arrivals(), "total_arrivals");
    require(per_rank() || arrivals == results, "a result for each arrival");
    for (int source = 0; source < group_.size(); ++source)
      for (int64_t slot = 0; slot < exchange_.num_results(source); ++slot)
        std::copy_n(sums.data() + (exchange_.first_result(source) + slot) * shape_.result_bytes,
                    shape_.result_bytes, exchange_.result_row(source, slot));
  }

  // The next token of that source that chose the expert, over all rounds.
  int64_t expected_token(int expert, int source, size_t& next) const {
    const auto& ids = batches_[source].topk_ids;
    while (next < ids.size() && ids[next] != expert) ++next;
    return next < ids.size() ? static_cast<int64_t>(next++) / shape_.topk : -1;
  }

  void check_arrival(int local_expert, const MoeExchange::Arrival& arrival) {
    const int expert = exchange_.first_local_expert() + local_expert;
    const int64_t token =
        expected_token(expert, arrival.source, next_[local_expert][arrival.source]);
    require(token >= 0, "too many arrivals");
    const auto row = make_row(shape_.row_bytes, number_, arrival.source, token);
    require(std::memcmp(arrival.row, row.data(), row.size()) == 0, "the wrong row arrived");
    require(arrival.weight == (per_rank() ? make_weight(token, expert) : 0), "the wrong weight");
  }

  void check_all_arrived() {
    for (int e = 0; e < exchange_.num_local_experts(); ++e)
      for (int source = 0; source < group_.size(); ++source)
        require(expected_token(exchange_.first_local_expert() + e, source, next_[e][source]) < 0,
                "an arrival is missing");
  }

  void check_answers(int64_t first, int64_t token) {
    const int32_t* ids = batches_[group_.rank()].topk_ids.data() + (first + token) * shape_.topk;
    const std::byte* row = rows_.data() + (first + token) * row_stride_;
    std::vector<std::vector<std::byte>> expected;
    int last_rank = -1;
    std::vector<int32_t> order(ids, ids + shape_.topk);
    if (per_rank()) std::ranges::sort(order);
    for (const int32_t expert : order) {
      const int rank = expert / exchange_.num_local_experts();
      if (!per_rank() || rank != last_rank) expected.emplace_back(shape_.result_bytes);
      last_rank = rank;
      add_expert(expert, per_rank() ? make_weight(first + token, expert) : 0, row, shape_,
                 expected.back().data());
    }
    require(exchange_.num_answers(token) == static_cast<int>(expected.size()), "num_answers");
    for (size_t i = 0; i < expected.size(); ++i)
      require(std::memcmp(exchange_.answer(token, static_cast<int>(i)), expected[i].data(),
                          shape_.result_bytes) == 0,
              fmt::format("answer {} of token {}", i, first + token));
  }

  MoeExchange& exchange_;
  const MoeExchangeShape& shape_;
  ProcessGroup& group_;
  int number_;
  std::mt19937 random_;
  std::vector<std::vector<size_t>> next_;  // [local expert][source] place in its topk_ids
  std::vector<Batch> batches_;
  size_t row_stride_ = 0;
  std::vector<std::byte> rows_;
  std::vector<float> weights_;
};

struct World {
  int size;
  Form form;
  int64_t tokens;  // of one rank and layer, at most
  MoeExchangeShape shape;
  CommMode mode = CommMode::kInline;
};

// Layers with collectives between them, on the same windows. Returns the rounds of all.
int run_layers(Arena& arena, int rank, const World& world, int layers) {
  Communicator communicator(arena, rank, kPatient, {.mode = world.mode});
  ProcessGroup group(communicator, 0, ranks_up_to(world.size));
  const auto exchange = make_exchange(world.form, group, world.shape);
  int rounds = 0;
  for (int layer = 0; layer < layers; ++layer) {
    const auto run = [&](Routing routing) {
      return Layer(*exchange, group, routing, world.tokens, layer).run();
    };
    rounds += run(kRoutings[layer % 4]);
    if (layer % 4 == 0) group.barrier();
    std::vector<float> data(3'000, 1.0f);  // several chunks, still on their way when a round starts
    if (layer % 4 == 1) {
      Pending pending = group.start_all_reduce(data);
      rounds += run(Routing::kRandom);
      pending.wait();
      require(data[2'999] == static_cast<float>(world.size), "all_reduce before a round");
    }
  }
  return rounds;
}

class MoeLayers : public testing::TestWithParam<World> {};

TEST_P(MoeLayers, EqualTheSerialModelInThreads) {
  const World world = GetParam();
  Arena arena = make_arena(world.size);

  const int layers = world.size > 8 ? 8 : 24;
  const auto errors =
      run_threads(world.size, [&](int rank) { run_layers(arena, rank, world, layers); });

  EXPECT_EQ(errors, all_fine(world.size));
}

TEST_P(MoeLayers, EqualTheSerialModelInProcesses) {
  const World world = GetParam();
  Arena arena = make_arena(world.size);

  const int layers = world.size > 8 ? 8 : 12;
  const auto errors =
      Processes(world.size, [&](int rank) { run_layers(arena, rank, world, layers); }).join();

  EXPECT_EQ(errors, all_fine(world.size));
}

std::vector<World> worlds() {
  const World each[] = {
      {1,
       Form::kFused,
       20,
       {.num_experts = 6, .topk = 3, .row_bytes = 40, .result_bytes = 72, .max_tokens = 9}},
      {2,
       Form::kFused,
       90,
       {.num_experts = 8, .topk = 3, .row_bytes = 64, .result_bytes = 128, .max_tokens = 50}},
      {3,
       Form::kFused,
       40,
       {.num_experts = 6, .topk = 6, .row_bytes = 300, .result_bytes = 700, .max_tokens = 40}},
      {4,
       Form::kFused,
       60,
       {.num_experts = 8, .topk = 4, .row_bytes = 100, .result_bytes = 36, .max_tokens = 50}},
      {8,
       Form::kFused,
       5,
       {.num_experts = 8, .topk = 2, .row_bytes = 10, .result_bytes = 20, .max_tokens = 5}},
      {8,
       Form::kFused,
       60,
       {.num_experts = 64, .topk = 8, .row_bytes = 7, .result_bytes = 64, .max_tokens = 99}},
      {32,
       Form::kFused,
       7,
       {.num_experts = 64, .topk = 6, .row_bytes = 40, .result_bytes = 24, .max_tokens = 3}}};
  std::vector<World> all;
  for (World world : each) {
    all.push_back(world);
    world.form = Form::kDoubleRouting;
    all.push_back(world);
    world.form = Form::kFused;
    world.shape.answer = Answer::kPerRank;
    all.push_back(world);
  }
  for (World world : {all[9], all[10], all[15]}) {  // 4 and 8 ranks, both forms
    world.mode = CommMode::kThread;
    all.push_back(world);
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Worlds, MoeLayers, testing::ValuesIn(worlds()));

// A row and its results fill most of a window; all choose experts of one rank.
TEST(MoeExchange, DropsNothingWhenOneTokenFillsAWindow) {
  const World world{
      4,
      Form::kFused,
      12,
      {.num_experts = 8, .topk = 2, .row_bytes = 3'000, .result_bytes = 2'000, .max_tokens = 100}};
  Arena arena = make_arena(world.size);

  const auto errors = run_threads(world.size, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(world.size));
    FusedExchange exchange(group, world.shape);
    const int rounds = Layer(exchange, group, Routing::kOneExpert, world.tokens, 1).run();
    require(rounds == 12, fmt::format("{} rounds", rounds));
  });

  EXPECT_EQ(errors, all_fine(world.size));
}

}  // namespace
}  // namespace troupe::comm
