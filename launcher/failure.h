// launcher/failure.h: what became of a launch that failed: which rank, where, who waited for it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "comm/arena.h"
#include "launcher/supervisor.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

// Times that the kernel has killed a process of this machine for want of memory; nothing where it
// does not say (/proc/vmstat).
std::optional<uint64_t> kernel_oom_kills();

// What there is to see of a launch from outside its ranks.
struct LaunchView {
  const comm::Arena& arena;
  std::vector<int> pids;  // [world size]
  model::ParallelSizes sizes;
  std::optional<uint64_t> oom_kills_at_start;
};

// "running", "sleeping", "stopped", ...; "gone" for a process that has ended.
std::string process_state(int pid);

// An ActivitySnapshot as the keys stage, step, layer, operation, group, sequence, waiting_for.
nlohmann::json activity_json(const comm::ActivitySnapshot& activity);

// "DP 1, TP 0, EP 3": its place in attention and experts, TP and ETP (inside an expert) only where
// there are any.
std::string rank_role(const model::ParallelSizes& sizes, int rank);

struct Failure {
  int rank = -1;  // the culprit; -1 if none can be told
  int pid = 0;
  std::string role;
  std::string what;              // "was killed by SIGKILL (signal 9)", "is stopped", "failed", ...
  comm::ActivitySnapshot place;  // what it was doing
  std::string detail;            // its own words, or what to do; may be empty
  std::vector<int> waiters;      // ranks that waited for it
};

// The three ways to learn of a failure, all before anything is aborted: the end of a process, what
// a rank published in the arena, and no progress for `stalled_s` seconds.
Failure failure_of_exit(const LaunchView& launch, const RankExit& exit);
Failure failure_of_words(const LaunchView& launch, int rank, const std::string& words);
Failure failure_of_stall(const LaunchView& launch, double stalled_s);

// "rank 3 (pid 4711, DP 3, EP 3) was killed by SIGKILL (signal 9) in decode step 14, layer 3,
// dispatch of group 0 (#421): <detail>; waited for by ranks 0, 2"
std::string failure_line(const Failure& failure);

}  // namespace troupe::launcher
