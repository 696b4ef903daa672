// launcher/check.h: `troupe check`: validates a configuration against its model, starts nothing.
#pragma once

#include <string>

#include "launcher/config.h"
#include "model/model_config.h"

namespace troupe::launcher {

// Bytes one rank needs, computed from shapes.
struct RankMemory {
  size_t private_weights = 0;
  size_t shared_weights = 0;  // once per machine
  size_t kv_cache = 0;
  size_t windows = 0;    // comm_buffer_mb, touched only when used
  size_t workspace = 0;  // activations, an estimate
};

// The layout as a table: sizes and derived groups, experts and heads per rank, memory per rank and
// in all, the machine's memory, and what `run` would refuse. UserError as read_config and
// ParallelLayout. With `fit` not fitting this machine is a UserError with the numbers.
std::string check_report(const Config& config, bool fit);

}  // namespace troupe::launcher
