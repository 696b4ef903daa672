// launcher/world.h: the ranks of a launch: shared memory, processes, their messages, and the loop
// that watches them all.
//
// Lives on the thread that made it (the ranks die with that thread); wake() alone may be called
// from others.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "actors/messages/message_generated.h"
#include "actors/observation.h"
#include "base/error.h"
#include "comm/arena.h"
#include "comm/trace.h"
#include "model/model_config.h"

namespace troupe::launcher {

// The user pressed Ctrl-C, or the launcher was told to end.
class Interrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A rank died, failed or stalled: the cause in one line (launcher/failure.h, and where the dump
// is), and which ranks had come to the collective that it is about (comm::flight_table; empty if
// there is none).
class WorldFailed : public RankError {
 public:
  WorldFailed(const std::string& cause, std::string ranks)
      : RankError(cause), ranks_(std::move(ranks)) {}
  const std::string& ranks() const { return ranks_; }

 private:
  std::string ranks_;
};

struct RankFigures {
  int rank = 0;
  double rss_mb = 0, pss_mb = 0;
  uint64_t bytes_sent = 0;
  double wait_ms = 0;
  uint64_t messages = 0;                                  // between the rank's actors
  uint64_t graphs_recorded = 0, graphs_replayed = 0;      // actors::StepGraphs::Counts
  std::map<int, std::vector<uint64_t>> expert_load = {};  // actors::ExpertLoad
};

// What a rank is doing at this moment.
struct RankStatus {
  int rank = 0, pid = 0;
  comm::ActivitySnapshot activity;
  double rss_mb = 0;
};

// Directories for what is told of a launch besides its output; none if empty.
struct WorldPaths {
  std::filesystem::path dump;   // if it fails: flight recorders, stacks
  std::filesystem::path trace;  // however it ends, if launch.trace_events is not 0
};

class World {
 public:
  struct Callbacks {
    std::function<void(const msg::Envelope&)> on_step_done;
    // Ctrl-C arrived; true: that is dealt with. Without it, and on other signals, Interrupted.
    std::function<bool()> on_interrupt = {};
    // The same for SIGTERM.
    std::function<bool()> on_terminate = {};
  };

  // Creates the shared memory and spawns the ranks; returns once all of them are ready.
  //
  // This and poll() throw WorldFailed with the first cause when a rank dies, fails or stalls: rank,
  // pid, what happened, in which step, layer and collective, who waited for it, and where the rest
  // is written; UserError when a rank says that the input is wrong; Interrupted on a signal. No
  // rank is left then.
  World(msg::LaunchT launch, const model::ModelConfig& model, WorldPaths paths,
        Callbacks callbacks);
  ~World();  // kills the ranks that still run

  double load_s() const;  // from the spawn to the last rank's Ready
  actors::Observation observation(int rank) const;
  comm::ActivitySnapshot activity(int rank) const;  // what it does at this moment

  std::vector<RankStatus> rank_status() const;  // in order of rank

  // To one rank. Each StepPlan is to be answered by one StepDone within the launch's time limit.
  void send(int rank, std::span<const std::byte> envelope);

  // Handles what has happened, waiting for something at most `timeout`; called at least once a
  // second while answers are due.
  void poll(std::chrono::milliseconds timeout);
  // Readable when poll() has something to do.
  int poll_fd() const;
  comm::Trace* trace() const;  // of this process; null if there is none
  void wake();  // makes poll() return, now or the next time it is called; from any thread

  // For those who look on (`troupe status`).
  void publish(const comm::LaunchFigures& figures);

  // Ends the ranks in order; nothing else may be called after it. Figures in order of rank.
  std::vector<RankFigures> shut_down();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::launcher
