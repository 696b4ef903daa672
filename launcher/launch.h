// launcher/launch.h: one launch: shared memory, rank processes, the scheduler, and the loop that
// watches them all.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "actors/observation.h"
#include "actors/scheduler.h"
#include "launcher/config.h"
#include "model/model_config.h"

namespace troupe::launcher {

// The user pressed Ctrl-C, or the launcher was told to end.
class Interrupted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct RankFigures {
  int rank = 0;
  double rss_mb = 0, pss_mb = 0;
  uint64_t bytes_sent = 0;
  double wait_ms = 0;
};

struct LaunchCallbacks {
  actors::Scheduler::OnTokens on_tokens;
  // Rows of request `index` at [first_position, +count), row `first_row` of `observation`.
  std::function<void(int index, const actors::Observation& observation, int first_row,
                     int first_position, int count)>
      on_observed;
};

struct LaunchResult {
  std::vector<actors::Completion> completions;  // in the order of the requests
  actors::StepStatistics statistics;
  std::vector<RankFigures> ranks;
  double load_s = 0;  // from the spawn to the last rank's Ready
};

// Runs `requests` on a fresh set of rank processes and brings all of them down again, whatever
// happens. `observe` is the union of the requests' observe bits.
// Throws UserError before any process starts where the input is wrong; RankError with the first
// cause when a rank dies, fails or stalls: rank, pid, what happened, in which step, layer and
// collective, who waited for it; Interrupted after SIGINT, SIGTERM or SIGHUP.
LaunchResult run_launch(const Config& config, const model::ModelConfig& model,
                        std::vector<actors::Request> requests, uint8_t observe,
                        const LaunchCallbacks& callbacks);

}  // namespace troupe::launcher
