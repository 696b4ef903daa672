// launcher/report.h: the figures of a run, as JSON (docs/design.md, section 6) and as a few lines.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "launcher/launch.h"

namespace troupe::launcher {

// Sums and means over a run; a field without data (no decode step, no drafts) is 0.
struct RunMetrics {
  double ttft_ms = 0;                 // mean over requests, from the start of the first step
  double tpot_ms = 0;                 // mean over requests with 2 tokens and more
  double prefill_tokens_per_s = 0;    // prompt tokens over the time of steps that read prompts
  double decode_tokens_per_s = 0;     // tokens of pure decode steps over their time
  int64_t drafts = 0;                 // verified
  double avg_accept_rate = 0;         // accepted / drafted
  double avg_accept_length = 0;       // accepted / verification forwards + 1
  double avg_equivalent_time_ms = 0;  // mean decode step / avg_accept_length
  double prefix_hit_rate = 0;         // tokens of admitted sequences found in the prefix cache
  double scheduler_share = 0;         // the scheduler's own time over that of the steps
};
RunMetrics run_metrics(const LaunchResult& result);

// The "metrics" object of the report.
nlohmann::json metrics_json(int world_size, const LaunchResult& result);

// "32 tokens on 4 ranks (avx2): TTFT 12.1 ms, ...; MTP: accept rate 0.763, ...": of MTP only where
// something was drafted.
std::string metrics_text(int world_size, const LaunchResult& result);

// Writes the file whole or not at all. UserError naming the path. A run that ends with it calls
// require_output_path(path) before it starts.
void write_json_file(const std::filesystem::path& path, const nlohmann::json& json);

}  // namespace troupe::launcher
