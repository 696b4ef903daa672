// launcher/launch_watch.h: looking on at a launch from another process (`troupe status`, `top`).
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "comm/arena.h"
#include "launcher/status_server.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

struct WatchedRank {
  int rank = 0, pid = 0;
  std::string role;     // rank_role()
  std::string process;  // "running", "sleeping", "stopped", ...; "gone"
  comm::ActivitySnapshot activity;
  double in_collective_s = -1;  // since it came to its collective; -1 outside
  double rss_mb = 0;
  double waited_for_share = 0;  // of the time looked at in which another waited for it alone
};

struct LaunchStatus {
  int pid = 0;
  std::string command;
  double up_s = 0;
  comm::LaunchFigures figures;
  std::vector<WatchedRank> ranks;
  // Ranks without which others have not got on for all of the time looked at.
  std::vector<int> absent;
  // The rank that the others wait for most, over half of the time: -1 none.
  int straggler = -1;
};

class LaunchWatch {
 public:
  // UserError when it is gone, or was started by another version of the program.
  explicit LaunchWatch(const LaunchAddress& address);

  // Looks for `duration`, many times: waits come and go within a millisecond.
  LaunchStatus look(std::chrono::milliseconds duration) const;
  bool ended() const;  // the launcher is no more

 private:
  explicit LaunchWatch(LaunchDescription description);
  explicit LaunchWatch(const nlohmann::json& description, Fd arena);
  WatchedRank rank_status(int rank) const;

  int pid_;
  std::string command_;
  int64_t started_ns_;  // CLOCK_MONOTONIC
  model::ParallelSizes sizes_;
  std::vector<int> pids_;
  comm::Arena arena_;
};

// For the launcher: what a LaunchWatch needs to know beside the arena.
std::string launch_description(const model::ParallelSizes& sizes, const comm::ArenaShape& shape,
                               const std::vector<int>& pids);

std::string status_text(const LaunchStatus& status);
nlohmann::json status_json(const LaunchStatus& status);

}  // namespace troupe::launcher
