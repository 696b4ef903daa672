// launcher/launch.h: one launch: ranks that are started for some requests and end with them.
#pragma once

#include <cstdint>
#include <vector>

#include "actors/scheduler.h"
#include "launcher/config.h"
#include "launcher/expert_load.h"
#include "launcher/session.h"
#include "model/model_config.h"

namespace troupe::launcher {

struct LaunchResult {
  std::vector<actors::Completion> completions;  // in the order of the requests
  actors::StepStatistics statistics;
  std::vector<RankFigures> ranks;
  std::vector<LayerLoad> expert_load;
  actors::DraftPolicy drafts = {0, false};  // at the end: what `next_n: auto` has come to
  int64_t kv_blocks = 0;                    // of a data-parallel rank
  double load_s = 0;                        // from the spawn to the last rank's Ready
};

// Runs `requests`, whose ids are their places, in a session of its own. `observe` is the union of
// the requests' observe bits. Throws what Session throws; UserError before any process starts.
LaunchResult run_launch(const Config& config, const model::ModelConfig& model,
                        std::vector<actors::Request> requests, uint8_t observe,
                        SessionCallbacks callbacks);

}  // namespace troupe::launcher
