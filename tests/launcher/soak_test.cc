// Requests of all kinds that come, go and are cancelled at random over ranks with hardly any KV
// blocks: what each yields is what it yields alone. TROUPE_SOAK=1 runs the long version.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "launcher/rank_memory.h"
#include "launcher/session.h"

namespace troupe::launcher {
namespace {

using actors::FinishReason;

constexpr int kVocab = 4096;  // of models/tiny-moe
constexpr int kLongest = 120;
constexpr int kBlocks = 12;  // of 16 positions: one and a half of the longest requests

const bool kLong = std::getenv("TROUPE_SOAK") != nullptr;

Config config_for(int world_size, int next_n) {
  Config config;
  config.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
  config.model.next_n = next_n;
  config.parallel.world_size = world_size;
  config.scheduler.batch_size = 4 * world_size;
  config.scheduler.block_size = 16;
  config.scheduler.max_prefill_tokens = 24;  // so that prompts are cut
  config.scheduler.num_reserved_decode_tokens = 4;
  config.runtime.comm_buffer_mb = 2;
  return config;
}

// A device that has room for kBlocks beside everything else.
void shrink_pool(Config& config, const model::ModelConfig& model, const Load& load) {
  auto limits = scheduler_limits(config, model, load, 0);
  limits.blocks_per_dp_rank = 1;
  const LaunchMemory memory =
      launch_memory(config, model, model::ParallelLayout(config.parallel, model), limits);
  const RankMemory& rank = memory.ranks[memory.fullest_rank()];
  const auto bytes = static_cast<double>(memory.shared_weights + rank.total() - rank.kv_cache) +
                     (kBlocks + 0.5) * static_cast<double>(rank.kv_cache);
  config.runtime.device_memory_gb = bytes / config.scheduler.mem_fraction_static / (1 << 30);
}

actors::Request random_request(std::mt19937& random) {
  const auto below = [&](int bound) { return static_cast<int>(random() % bound); };
  actors::Request r;
  // Some begin alike, so that blocks are shared.
  const int start = below(3);
  const int length = 1 + below(below(4) == 0 ? 80 : 30);
  for (int i = 0; i < length; ++i)
    r.prompt.push_back(i < 40 && start < 2 ? 7 + start * 50 + i : below(kVocab));
  r.max_new_tokens = 1 + below(kLongest - length > 40 ? 40 : kLongest - length);
  if (below(2) == 0) r.stop_ids = {below(200), below(200)};
  if (below(3) == 0) return r;  // greedy
  r.temperature = 0.5f + 0.1f * static_cast<float>(below(10));
  r.seed = random();
  r.choice = below(3);
  if (below(2) == 0) r.top_k = 1 + below(50);
  if (below(2) == 0) r.top_p = 0.8f;
  if (below(4) == 0) r.min_p = 0.05f;
  if (below(4) == 0) r.repetition_penalty = 1.2f;
  if (below(4) == 0) r.presence_penalty = 0.5f;
  if (below(4) == 0) r.frequency_penalty = 0.3f;
  if (below(4) == 0) r.logit_bias = {{below(kVocab), 8.0f}, {below(kVocab), -100.0f}};
  if (below(4) == 0) r.top_log_probs = below(4);
  return r;
}

std::vector<actors::Request> random_requests(int count) {
  std::mt19937 random(20);
  std::vector<actors::Request> requests;
  for (int i = 0; i < count; ++i) requests.push_back(random_request(random));
  return requests;
}

// One after the other, on one rank with all the memory it wants, without drafts.
std::vector<actors::Completion> run_alone(const std::vector<actors::Request>& requests) {
  Config config = config_for(1, 0);
  config.scheduler.batch_size = 1;
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  Session session(config, model, {kLongest, kLongest}, 0,
                  {.on_tokens = [](int, std::span<const int32_t>, FinishReason) {}});
  std::vector<actors::Completion> alone;
  for (const actors::Request& request : requests) {
    const int id = session.submit(request);
    session.run_until([&] { return session.idle(); });
    alone.push_back(session.completion(id));
  }
  return alone;
}

struct Outcome {
  std::vector<actors::Completion> completions;
  actors::StepStatistics statistics;
};

Outcome run_together(const Config& config, const std::vector<actors::Request>& requests,
                     uint32_t seed) {
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  Config small = config;
  const Load load{kLongest, kLongest};
  shrink_pool(small, model, load);
  Session session(small, model, load, 0,
                  {.on_tokens = [](int, std::span<const int32_t>, FinishReason) {}});
  EXPECT_EQ(session.limits().blocks_per_dp_rank, kBlocks);
  std::mt19937 random(seed);
  size_t submitted = 0;
  while (submitted < requests.size() || !session.idle()) {
    if (submitted < requests.size())
      for (auto n = random() % 4; n > 0 && submitted < requests.size(); --n)
        session.submit(requests[submitted++]);
    if (submitted > 0 && random() % 30 == 0) session.cancel(static_cast<int>(random() % submitted));
    session.poll(std::chrono::seconds(1));
  }
  EXPECT_EQ(session.state().blocks_in_use, 0);
  Outcome outcome{.completions = {}, .statistics = session.statistics()};
  for (size_t i = 0; i < requests.size(); ++i)
    outcome.completions.push_back(session.completion(static_cast<int>(i)));
  session.shut_down();
  return outcome;
}

void expect_equal(const actors::Completion& found, const actors::Completion& alone) {
  if (found.reason == FinishReason::kCancelled) {
    ASSERT_LE(found.tokens.size(), alone.tokens.size());
    EXPECT_TRUE(
        std::ranges::equal(found.tokens, std::span(alone.tokens).first(found.tokens.size())));
    return;
  }
  EXPECT_EQ(found.reason, alone.reason);
  EXPECT_EQ(found.tokens, alone.tokens);
  ASSERT_EQ(found.token_log_probs.size(), alone.token_log_probs.size());
  for (size_t i = 0; i < found.token_log_probs.size(); ++i) {
    EXPECT_EQ(found.token_log_probs[i].chosen, alone.token_log_probs[i].chosen);
    EXPECT_EQ(found.token_log_probs[i].top, alone.token_log_probs[i].top);
  }
}

TEST(Soak, EveryRequestYieldsWhatItYieldsAlone) {
  const auto requests = random_requests(kLong ? 500 : 60);
  const auto alone = run_alone(requests);
  struct Case {
    int ranks, next_n;
  };
  const std::vector<Case> worlds =
      kLong ? std::vector<Case>{{1, 0}, {1, 4}, {2, 1}, {4, 2}, {8, 3}, {8, Config::kAuto}}
            : std::vector<Case>{{1, 4}, {2, 0}, {4, 1}};
  int64_t preemptions = 0, reused_tokens = 0;
  for (const auto& [ranks, next_n] : worlds) {
    SCOPED_TRACE(fmt::format("{} ranks, next_n {}", ranks, next_n));
    const Outcome outcome =
        run_together(config_for(ranks, next_n), requests, static_cast<uint32_t>(ranks));
    int cancelled = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      SCOPED_TRACE(fmt::format("request {}", i));
      expect_equal(outcome.completions[i], alone[i]);
      cancelled += outcome.completions[i].reason == FinishReason::kCancelled;
    }
    EXPECT_LT(cancelled, std::ssize(requests) / 2);
    preemptions += outcome.statistics.preemptions;
    reused_tokens += outcome.statistics.reused_tokens;
  }
  EXPECT_GT(preemptions, 0);
  EXPECT_GT(reused_tokens, 100);
}

}  // namespace
}  // namespace troupe::launcher
