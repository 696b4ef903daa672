// A rank that is killed or stopped inside a collective is named by those that survive.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string_view>
#include <tuple>

#include "base/error.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "comm/heartbeat.h"
#include "world.h"

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;

// Calls that never end by themselves, on messages of several chunks.
struct Endless {
  const char* name;
  std::function<void(ProcessGroup&)> call;
};

// Dispatch and combine of tokens that each go to two of eight experts, without computing them.
template <class Exchange>
void run_round(ProcessGroup& group) {
  constexpr int kTokens = 10, kTopk = 2, kExperts = 8;
  constexpr size_t kRowBytes = 128;
  Exchange exchange(group, {.num_experts = kExperts,
                            .topk = kTopk,
                            .row_bytes = kRowBytes,
                            .result_bytes = kRowBytes,
                            .max_tokens = kTokens});
  const std::vector<std::byte> rows(kTokens * kRowBytes);
  std::vector<int32_t> ids(kTokens * kTopk);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i % kExperts);
  MoeExchange::Tokens tokens{.rows = rows.data(),
                             .row_stride = kRowBytes,
                             .count = kTokens,
                             .topk_ids = ids,
                             .weights = {}};
  do {
    exchange.start_dispatch(tokens);
    exchange.finish_dispatch();
    exchange.start_combine();
    exchange.finish_combine();
    exchange.release();
    tokens = tokens.from(exchange.taken(), kTopk);
  } while (exchange.more());
}

std::vector<Endless> endless_calls() {
  static std::vector<std::byte> in(5 * kSmallSlot), out(5 * kSmallSlot);
  static std::vector<float> data(100'000), part(25'000);
  static const std::vector<int64_t> bytes(4, kSmallSlot), displs{0, 4096, 8192, 12288};
  const auto four = [](auto& all) { return std::span(all).first(4 * kSmallSlot); };
  return {
      {"barrier", [](auto& group) { group.barrier(); }},
      {"broadcast", [](auto& group) { group.broadcast(out, 1); }},
      {"all_gather",
       [=](auto& group) { group.all_gather(std::span(in).first(kSmallSlot), four(out)); }},
      {"reduce_scatter",
       [](auto& group) { group.reduce_scatter(std::span<const float>(data), std::span(part)); }},
      {"short_all_reduce", [](auto& group) { group.all_reduce(std::span(data).first(100)); }},
      {"long_all_reduce", [](auto& group) { group.all_reduce(std::span(data)); }},
      {"all_to_all", [=](auto& group) { group.all_to_all(four(in), four(out)); }},
      {"all_to_all_v",
       [](auto& group) {
         group.all_to_all_v(in, out, {bytes, displs, bytes, displs});
       }},
      {"handles",
       [](auto& group) {
         Pending first = group.start_all_reduce(data);
         Pending second = group.start_all_to_all_v(in, out, {bytes, displs, bytes, displs});
         first.wait();
         second.wait();
       }},
      {"started_barriers",
       [](auto& group) {
         Pending first = group.start_barrier(), second = group.start_barrier();
         first.wait();
         second.wait();
       }},
      {"fused_round", [](auto& group) { run_round<FusedExchange>(group); }},
      {"double_routing_round", [](auto& group) { run_round<DoubleRouting>(group); }},
  };
}

// Lost at a random moment of any collective: killed, or stopped, which no process can see.
class LostRank : public testing::TestWithParam<std::tuple<Endless, int, CommMode>> {};

TEST_P(LostRank, IsNamedByTheSurvivors) {
  const auto& [endless, signal, mode] = GetParam();
  std::mt19937_64 random(std::hash<std::string_view>{}(endless.name) + static_cast<size_t>(signal) +
                         1000 * static_cast<size_t>(mode));
  const int lost = static_cast<int>(random() % 4);
  const uint64_t collective = 1 + random() % 40;
  const auto later = std::chrono::microseconds(random() % 500);
  SCOPED_TRACE(fmt::format("rank {}, {} us after collective {}", lost, later.count(), collective));
  Arena arena = make_arena(4);
  Processes processes(4, [&](int rank) {
    const CommOptions options{.mode = std::get<CommMode>(GetParam())};
    Communicator communicator(arena, rank, milliseconds(1000), options);
    ProcessGroup group(communicator, 0, ranks_up_to(4));
    for (;;) std::get<Endless>(GetParam()).call(group);
  });

  await_collective(arena, lost, collective);
  std::this_thread::sleep_for(later);
  processes.kill(lost, signal);
  while (arena.first_failed_rank() < 0) std::this_thread::sleep_for(milliseconds(1));
  processes.kill(lost);

  const auto errors = processes.join();
  EXPECT_EQ(errors[lost], "killed by signal 9");
  for (int rank = 0; rank < 4; ++rank)
    if (rank != lost) {
      EXPECT_TRUE(contains(errors[rank], fmt::format("rank {}", lost)));
    }
}

std::string name_of_loss(const testing::TestParamInfo<LostRank::ParamType>& test) {
  const auto& [endless, signal, mode] = test.param;
  return fmt::format("{}_{}", endless.name, signal == SIGKILL ? "killed" : "stopped");
}

INSTANTIATE_TEST_SUITE_P(Inside, LostRank,
                         testing::Combine(testing::ValuesIn(endless_calls()),
                                          testing::Values(SIGKILL, SIGSTOP),
                                          testing::Values(CommMode::kInline)),
                         name_of_loss);

// Those that a comm thread drives, if there is one.
std::vector<Endless> started_calls() {
  std::vector<Endless> calls = endless_calls();
  std::erase_if(calls, [](const Endless& endless) {
    const std::string_view name = endless.name;
    return name != "handles" && name != "started_barriers" && !name.ends_with("_round");
  });
  return calls;
}

INSTANTIATE_TEST_SUITE_P(InsideOfACommThread, LostRank,
                         testing::Combine(testing::ValuesIn(started_calls()),
                                          testing::Values(SIGKILL, SIGSTOP),
                                          testing::Values(CommMode::kThread)),
                         name_of_loss);

}  // namespace
}  // namespace troupe::comm
