// launcher/launch_sizes.h: what a launch is sized for: the step, the KV pools, the Launch message.
//
// A run asks with its requests, `check` with the largest load it assumes: the same arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "actors/messages/message_generated.h"
#include "actors/rank_context.h"
#include "actors/scheduler.h"
#include "launcher/config.h"
#include "model/model_config.h"

namespace troupe::launcher {

inline constexpr int kDefaultPrefillTokens = 512;  // prompt tokens per rank and step

struct Load {
  int64_t longest_prompt = 1;
  int64_t longest_sequence = 1;  // with the tokens it generates
  bool adopts = false;           // requests may have blocks of other launches
};
Load load_of(const std::vector<actors::Request>& requests, const model::ModelConfig& model);

// Sizes the step and the KV pools for this load: no running request can ever lack a block (see
// serving_limits() for the pools that ranks get). `observe`: bits of msg::Observe. Throws UserError
// when drafts are wanted of a model without an MTP layer.
actors::SchedulerLimits scheduler_limits(const Config& config, const model::ModelConfig& model,
                                         const Load& load, uint8_t observe);

// How rows travel to experts and back.
actors::MoeOptions moe_options(const Config& config);

// What every rank is told at its start.
msg::LaunchT describe_launch(const Config& config, const actors::SchedulerLimits& limits,
                             uint8_t observe);

}  // namespace troupe::launcher
