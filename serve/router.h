// serve/router.h: one endpoint before many instances: pairs a prefill and a decode instance for
// each request (docs/pd.md).
//
// One thread runs it (run()); clients' threads hand requests over through a queue, as they do to
// serve/engine.h. Instances come and go at any time; each request has a room, a number that is
// never given twice, by which the router and its instances know it.
//
//   room:  prefill --FirstToken--> decode --the last Tokens--> gone
//             |                      |
//             +----------------------+--client left, stop text: Abort to both; Lost, an instance
//             gone
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "comm/arena.h"
#include "serve/backend.h"
#include "serve/instance_list.h"

namespace troupe::serve {

class Router final : public Backend {
 public:
  // Listens for instances under `name`; UserError when another router does. `max_queued`: requests
  // that may be open beside those that the decode instances have seats for.
  Router(const std::string& name, int max_queued);
  ~Router() override;

  struct Hooks {
    // Once there is an instance of each role, the first time.
    std::function<void()> on_ready;
    // About ten times a second; throws to end the router.
    std::function<void()> on_tick = [] {};
  };
  // Serves until drained: SIGTERM and Ctrl-C as in Engine::run().
  void run(const Hooks& hooks);

  std::shared_ptr<Generation> submit(std::vector<actors::Request> requests,
                                     std::function<void()> wake, Refusal& refusal) override;
  void cancel(const std::shared_ptr<Generation>& generation) override;
  EngineState state() const override { return state_; }
  int64_t most_positions() const override { return most_positions_; }
  int world_size() const override { return world_size_; }
  std::vector<RankView> ranks() const override;
  const Metrics& metrics() const override { return metrics_; }
  nlohmann::ordered_json pools() const override;
  std::string pool_metrics() const override;

 private:
  using Clock = std::chrono::steady_clock;
  using Arrival = std::pair<std::shared_ptr<Generation>, std::vector<actors::Request>>;
  struct Room {
    std::shared_ptr<Generation> generation;
    int number = 0;  // in its generation
    actors::Request request;
    Clock::time_point submitted = Clock::now();
    std::optional<uint32_t> prefill, decode;  // instances that it is, or was, with
    bool prefilling = false;
    actors::Completion completion = {};  // what the metrics want of it
  };
  struct Signals;
  struct Joining {
    PeerLink* link;
    pd::InstanceT about;
    std::vector<Fd> files;
  };

  void ring() const;  // ends wait()
  void work(const Hooks& hooks);
  void on_signal(int signal);
  void wait(const Signals& signals) const;
  void take_orders();
  void enter(const Arrival& arrival);
  void accept_instances();
  void read_from(PeerLink& link, std::optional<uint32_t> instance);
  void hear(uint32_t number, const pd::Envelope& message);
  void join(PeerLink& link, const pd::Join& message, std::vector<Fd> files);
  void welcome();
  void introduce(JoinedInstance& instance);
  void remove_broken();
  void update_state();
  static bool is_with(const Room& room, uint32_t instance);
  void on_first_token(uint32_t from, const pd::FirstTokenT& message);
  void hand_over(uint64_t number, const pd::FirstTokenT& message);
  void on_tokens(uint32_t from, const pd::NewTokensT& tokens);
  bool pass_on(uint64_t number, const pd::NewTokensT& tokens);
  void count(Room& room, int64_t new_tokens);
  void leave_prefill(Room& room);
  void abort_at(uint32_t number, uint64_t room);
  void abort(uint64_t number);
  void fail(uint64_t number, const std::string& why);
  void fail_all(const std::string& why);
  void close(uint64_t number, actors::FinishReason reason);
  void forget(uint64_t number);
  void publish_view();

  Fd listener_, wake_;
  const int max_queued_;
  std::atomic<EngineState> state_ = EngineState::kLoading;
  std::atomic<int64_t> most_positions_ = 0;
  std::atomic<int> world_size_ = 0;
  std::atomic<int> seats_ = 0;  // of the decode instances

  mutable std::mutex mutex_;  // of what follows
  std::vector<Arrival> arrivals_;
  std::vector<std::shared_ptr<Generation>> leaving_;
  int open_ = 0;  // requests submitted whose end has not been delivered
  bool draining_ = false;
  std::vector<RankView> ranks_;
  nlohmann::ordered_json pools_ = nlohmann::ordered_json::array();

  // The router's thread alone.
  InstanceList instances_;
  std::vector<PeerLink> newcomers_;  // that have not said who they are
  std::vector<Joining> joining_;     // that just have
  std::unordered_map<uint64_t, Room> rooms_;
  uint64_t next_room_;
  Clock::time_point viewed_{};
  Metrics metrics_;
};

}  // namespace troupe::serve
