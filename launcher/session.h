// launcher/session.h: ranks that stay up and answer requests as they come. `run`, `score`, `verify`
// and whatever serves are built on it.
//
// One thread, that of the constructor, calls everything but wake(). Nothing happens outside poll()
// and run_until(): there plans go out, results come in and callbacks are called. A program with an
// event loop of its own waits for poll_fd() and calls poll(0); it calls poll() at least once a
// second while there are requests, so that a rank that hangs is noticed.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include "actors/scheduler.h"
#include "launcher/config.h"
#include "launcher/launch_sizes.h"
#include "launcher/world.h"
#include "model/model_config.h"

namespace troupe::launcher {

struct SessionCallbacks {
  // As actors::Scheduler calls it: new tokens of a request; with a reason they are the last.
  // Requests may be submitted, cancelled and released from it.
  actors::Scheduler::OnTokens on_tokens;
  // Rows of a request at [first_position, +count), row `first_row` of `observation`.
  std::function<void(int id, const actors::Observation& observation, int first_row,
                     int first_position, int count)>
      on_observed = {};
  // Ctrl-C; true when it is dealt with (a chat cancels its answer), else poll() throws Interrupted.
  std::function<bool()> on_interrupt = {};
  std::function<bool()> on_terminate = {};  // the same for SIGTERM
};

class Session {
 public:
  // Starts the ranks and waits until they are ready. `load` bounds what requests may ask for, all
  // that the model can do by default; `observe` is the union of their observe bits. Errors: those
  // of World, and UserError before any process starts where the input is wrong.
  Session(const Config& config, const model::ModelConfig& model, const Load& load, uint8_t observe,
          SessionCallbacks callbacks);

  // The id of a new request: 0, 1, 2, ... UserError when its prompt is too long.
  int submit(actors::Request request);
  // Ends a request with FinishReason::kCancelled, unless it has ended; on_tokens is called.
  void cancel(int id);
  // What has come of a request so far.
  const actors::Completion& completion(int id) const { return scheduler_.completion(id); }
  // Forgets a request that has ended, so that a session's memory does not grow for ever.
  void release(int id) { scheduler_.release(id); }
  // As actors::Scheduler has them, of requests that are to hold their blocks.
  std::optional<actors::HeldBlocks> held(int id) const { return scheduler_.held(id); }
  void show_generations(int dp_rank, std::span<std::atomic<uint64_t>> shown) {
    scheduler_.show_generations(dp_rank, shown);
  }
  // As World has them: for the blocks that launches read of each other.
  int kv_file() const { return world_->kv_file(); }
  const layers::KvCacheShape& kv_shape() const { return world_->kv_shape(); }
  void map_kv(const ForeignSection& section, Fd file) { world_->map_kv(section, std::move(file)); }
  bool idle() const { return scheduler_.finished(); }  // every request has ended, no step runs

  // The errors of World::poll. Waits at most `timeout` for something to happen, then handles it.
  void poll(std::chrono::milliseconds timeout);
  void run_until(const std::function<bool()>& done);
  int poll_fd() const { return world_->poll_fd(); }
  void wake() { world_->wake(); }  // makes poll() return; from any thread

  const actors::SchedulerLimits& limits() const { return limits_; }
  const actors::StepStatistics& statistics() const { return scheduler_.statistics(); }
  actors::SchedulerState state() const { return scheduler_.state(); }
  const actors::DraftPolicy& drafts() const { return scheduler_.drafts(); }
  actors::SchedulerState dp_rank_state(int dp_rank) const {
    return scheduler_.dp_rank_state(dp_rank);
  }
  comm::ActivitySnapshot activity(int rank) const { return world_->activity(rank); }
  layers::KvCache kv_cache(int rank) const { return world_->kv_cache(rank); }
  double load_s() const { return world_->load_s(); }
  std::vector<RankStatus> rank_status() const { return world_->rank_status(); }

  // Records what all ranks do from the next step on (docs/tracing.md), when idle() and nothing is
  // recorded. UserError when the directory cannot be made. For a Config::trace_on_demand.
  void start_trace(const std::filesystem::path& directory);
  // Ends the recording, when idle(), and writes its files into that directory, which it returns. A
  // recording that the launch began with counts too. UserError when it cannot be written, or
  // nothing has been done.
  std::filesystem::path finish_trace();
  void drop_trace();  // ends it without files
  bool tracing() const { return world_->trace() != nullptr; }

  // Ends the ranks in order, when idle(); the last call.
  std::vector<RankFigures> shut_down() { return world_->shut_down(); }

 private:
  actors::SchedulerLimits limits_;
  SessionCallbacks callbacks_;
  actors::Mailbox mailbox_;
  actors::Scheduler scheduler_;
  std::optional<World> world_;
  uint64_t traced_after_ = 0;  // the last step that the recording leaves out
};

}  // namespace troupe::launcher
