// serve/engine.h: the ranks behind the server: requests from any thread, answers as they come.
//
// One thread runs the session (run()); it alone touches it. Clients' threads hand requests over
// through a bounded queue and take answers from their Generation, so nothing that a client does can
// hold up a step. One engine is one pool of ranks, which both prefill and decode; serve/router.h is
// the same for ranks that do the one or the other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "launcher/config.h"
#include "launcher/session.h"
#include "model/model_config.h"
#include "serve/backend.h"

namespace troupe::serve {

class Engine final : public Backend {
 public:
  // `max_queued`: requests that may wait beside those that run.
  Engine(const launcher::Config& config, const model::ModelConfig& model, int max_queued);

  // Starts the ranks, calls `on_ready`, and serves until drained. SIGTERM and Ctrl-C drain: no new
  // request is taken, those that were are answered, then the ranks end and run() returns. A second
  // signal, or one while ranks start, throws Interrupted. The errors of Session: then every open
  // request has failed. UserError when the KV cache has no room for a single request.
  void run(const std::function<void()>& on_ready);

  std::shared_ptr<Generation> submit(std::vector<actors::Request> requests,
                                     std::function<void()> wake, Refusal& refusal) override;
  void cancel(const std::shared_ptr<Generation>& generation) override;
  EngineState state() const override { return state_; }
  int64_t most_positions() const override { return most_positions_; }
  int world_size() const override { return config_.parallel.world_size; }
  std::vector<RankView> ranks() const override;
  const Metrics& metrics() const override { return metrics_; }

 private:
  using Arrival = std::pair<std::shared_ptr<Generation>, std::vector<actors::Request>>;
  struct Answer {
    std::shared_ptr<Generation> generation;
    int number = 0;             // in its generation
    int64_t prompt_tokens = 0;  // for the metrics
    size_t said = 0;            // tokens
    double last_token_s = 0;
  };

  bool start_draining();
  bool drained();
  void take_orders();
  void enter(const Arrival& arrival);
  void on_tokens(int id, std::span<const int32_t> tokens, actors::FinishReason reason);
  void deliver();
  void forget(int id, const Answer& answer);
  void publish_view();
  void fail_all(const std::string& why);

  const launcher::Config& config_;
  const model::ModelConfig& model_;
  const int max_open_;  // requests that run or wait
  std::atomic<EngineState> state_ = EngineState::kLoading;
  std::atomic<int64_t> most_positions_ = 0;

  mutable std::mutex mutex_;  // of what follows
  launcher::Session* session_ = nullptr;
  std::vector<Arrival> arrivals_;
  std::vector<std::shared_ptr<Generation>> leaving_;
  int open_ = 0;  // requests submitted whose end has not been delivered
  std::vector<RankView> ranks_;

  // The engine's thread alone.
  std::unordered_map<int, Answer> answers_;  // by request id
  struct Said {
    int id;
    std::vector<int32_t> tokens;
    actors::FinishReason reason;
  };
  std::vector<Said> said_;  // during this poll: delivered when the next step is under way
  std::chrono::steady_clock::time_point viewed_{};
  Metrics metrics_;
};

}  // namespace troupe::serve
