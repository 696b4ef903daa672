#include "serve/engine.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/rank_memory.h"

namespace troupe::serve {

namespace {

using actors::FinishReason;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPollTime{1000};
constexpr milliseconds kViewInterval{100};

}  // namespace

Engine::Engine(const launcher::Config& config, const model::ModelConfig& model, int max_queued)
    : config_(config), model_(model), max_open_(config.scheduler.batch_size + max_queued) {}

// ---- from any thread ----------------------------------------------------------------------------

std::shared_ptr<Generation> Engine::submit(std::vector<actors::Request> requests,
                                           std::function<void()> wake, Refusal& refusal) {
  const std::lock_guard lock(mutex_);
  switch (state_.load()) {
    case EngineState::kLoading:
      refusal = Refusal::kLoading;
      return nullptr;
    case EngineState::kDraining:
      refusal = Refusal::kDraining;
      return nullptr;
    case EngineState::kFailed:
      refusal = Refusal::kFailed;
      return nullptr;
    case EngineState::kReady:
      break;
  }
  if (open_ + std::ssize(requests) > max_open_) {
    refusal = Refusal::kQueueFull;
    metrics_.on_refused();
    return nullptr;
  }
  refusal = Refusal::kNone;
  open_ += static_cast<int>(requests.size());
  auto generation = std::make_shared<Generation>(std::move(wake));
  arrivals_.emplace_back(generation, std::move(requests));
  session_->wake();
  return generation;
}

void Engine::cancel(const std::shared_ptr<Generation>& generation) {
  const std::lock_guard lock(mutex_);
  if (session_ == nullptr) return;
  leaving_.push_back(generation);
  session_->wake();
}

std::vector<RankView> Engine::ranks() const {
  const std::lock_guard lock(mutex_);
  return ranks_;
}

// ---- the engine's thread ------------------------------------------------------------------------

void Engine::run(const std::function<void()>& on_ready) {
  const launcher::Load load{.longest_prompt = model_.max_position_embeddings,
                            .longest_sequence = model_.max_position_embeddings};
  launcher::Session session(
      config_, model_, load, 0,
      {.on_tokens = [this](int id, std::span<const int32_t> tokens,
                           FinishReason reason) { on_tokens(id, tokens, reason); },
       .on_interrupt = [this] { return start_draining(); },
       .on_terminate = [this] { return start_draining(); }});
  const actors::SchedulerLimits& limits = session.limits();
  most_positions_ = std::min(limits.max_positions, limits.blocks_per_dp_rank * limits.block_size -
                                                       2 * int64_t{limits.num_drafts});
  if (most_positions_ < 2)
    throw_user_error(
        "no memory is left for the KV cache; raise scheduler_config.mem_fraction_static or "
        "runtime_config.device_memory_gb");
  {
    const std::lock_guard lock(mutex_);
    session_ = &session;
    state_ = EngineState::kReady;
  }
  publish_view();
  on_ready();
  try {
    while (!drained()) {
      take_orders();
      session.poll(kPollTime);
      deliver();
    }
  } catch (const std::exception& failure) {
    fail_all(failure.what());
    throw;
  }
  {
    const std::lock_guard lock(mutex_);
    session_ = nullptr;
  }
  session.shut_down();
}

bool Engine::start_draining() {
  const std::lock_guard lock(mutex_);
  if (state_ != EngineState::kReady) return false;
  state_ = EngineState::kDraining;
  spdlog::info("draining: {} open request{}; a second signal ends at once", open_,
               open_ == 1 ? "" : "s");
  return true;
}

bool Engine::drained() {
  const std::lock_guard lock(mutex_);
  return state_ == EngineState::kDraining && open_ == 0 && arrivals_.empty() && session_->idle();
}

void Engine::take_orders() {
  std::vector<Arrival> arrivals;
  std::vector<std::shared_ptr<Generation>> leaving;
  {
    const std::lock_guard lock(mutex_);
    arrivals.swap(arrivals_);
    leaving.swap(leaving_);
  }
  for (const Arrival& arrival : arrivals) enter(arrival);
  for (const auto& generation : leaving) {
    std::vector<int> ids;  // cancel() speaks through on_tokens()
    for (const auto& [id, answer] : answers_)
      if (answer.generation == generation) ids.push_back(id);
    for (const int id : ids) session_->cancel(id);
  }
}

void Engine::enter(const Arrival& arrival) {
  const auto& [generation, requests] = arrival;
  for (size_t i = 0; i < requests.size(); ++i) {
    const int id = session_->submit(requests[i]);
    answers_[id] = {.generation = generation,
                    .number = static_cast<int>(i),
                    .prompt_tokens = std::ssize(requests[i].prompt)};
  }
}

void Engine::on_tokens(int id, std::span<const int32_t> tokens, FinishReason reason) {
  said_.push_back({id, {tokens.begin(), tokens.end()}, reason});
}

void Engine::deliver() {
  for (Said& said : said_) {
    Answer& answer = answers_.at(said.id);
    const actors::Completion& completion = session_->completion(said.id);
    const auto count = std::ssize(said.tokens);
    GenerationEvent event{.answer = answer.number,
                          .tokens = std::move(said.tokens),
                          .reason = said.reason,
                          .cached_tokens = completion.reused_tokens};
    if (!completion.token_log_probs.empty()) {
      const auto first = completion.token_log_probs.begin() + static_cast<int64_t>(answer.said);
      event.log_probs.assign(first, first + count);
    }
    if (count > 0) {
      if (answer.said == 0) metrics_.on_first_token(completion.first_token_s);
      metrics_.on_more_tokens(answer.said == 0 ? 0 : completion.last_token_s - answer.last_token_s,
                              count);
      answer.said += count;
      answer.last_token_s = completion.last_token_s;
    }
    answer.generation->push(std::move(event));
    if (said.reason != FinishReason::kNone) forget(said.id, answer);
  }
  if (said_.empty() && steady_clock::now() - viewed_ < kViewInterval) return;
  said_.clear();
  publish_view();
}

void Engine::forget(int id, const Answer& answer) {
  metrics_.on_end(session_->completion(id), answer.prompt_tokens);
  session_->release(id);
  answers_.erase(id);
  const std::lock_guard lock(mutex_);
  --open_;
}

void Engine::publish_view() {
  metrics_.on_step(session_->statistics(), session_->state());
  const auto now = steady_clock::now();
  if (now - viewed_ < kViewInterval) return;
  viewed_ = now;
  std::vector<RankView> ranks(world_size());
  for (int rank = 0; rank < world_size(); ++rank)
    ranks[rank] = {.rank = rank,
                   .activity = session_->activity(rank),
                   .load = session_->dp_rank_state(rank / config_.parallel.attn_tp_size)};
  const std::lock_guard lock(mutex_);
  ranks_.swap(ranks);
}

void Engine::fail_all(const std::string& why) {
  std::vector<std::shared_ptr<Generation>> open;
  {
    const std::lock_guard lock(mutex_);
    state_ = EngineState::kFailed;
    session_ = nullptr;
    for (const Arrival& arrival : arrivals_) open.push_back(arrival.first);
  }
  for (const auto& [id, answer] : answers_) open.push_back(answer.generation);
  for (const auto& generation : open) generation->fail(why);
}

}  // namespace troupe::serve
