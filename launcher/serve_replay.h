// launcher/serve_replay.h: a workload replayed against a session, and what its users felt.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launcher/arrivals.h"
#include "launcher/session.h"

namespace troupe::launcher {

struct ReplaySample {  // after a step
  double at_s = 0;
  int waiting = 0, running = 0;
  double kv_use = 0;  // of the blocks of all ranks
  int64_t preemptions = 0;
};

struct Replay {
  std::vector<double> ttft_s, tpot_s, queue_s;  // of the requests; tpot of those with 2 tokens
  std::vector<ReplaySample> samples;
  int64_t input_tokens = 0, output_tokens = 0;
  double seconds = 0;  // from the first arrival to the last token
  actors::StepStatistics statistics;
};

// The load that these arrivals bring.
Load load_of(const std::vector<Arrival>& arrivals);

// Submits random prompts of the given lengths when they are due, whatever has become of those
// before; times count from when a request was due.
Replay replay(Session& session, const std::vector<Arrival>& arrivals, int64_t vocab_size);

// Nearest rank: the smallest value that `fraction` of all do not exceed; 0 without values.
double percentile(std::vector<double> values, double fraction);

nlohmann::json replay_json(const Replay& replay);
std::string replay_table(const Replay& replay);
// Requests in flight and waiting, KV use and preemptions over time.
std::string replay_svg(const Replay& replay);

}  // namespace troupe::launcher
