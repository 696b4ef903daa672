// actors/rank.h: the life of one rank process: hello, load, steps, goodbye.
#pragma once

#include <cstddef>
#include <string>

#include "actors/messages/message_generated.h"
#include "actors/rank_context.h"
#include "comm/process_group.h"
#include "comm/trace_ring.h"
#include "layers/kv_cache.h"
#include "layers/team.h"
#include "model/model_config.h"
#include "model/parallel_layout.h"
#include "model/weights.h"

namespace troupe::actors {

// What a rank and its launcher both derive from the Launch message, so that they agree.
model::ParallelSizes parallel_sizes(const msg::LaunchT& launch);
model::WeightOptions weight_options(const msg::LaunchT& launch);
layers::KvCacheShape kv_cache_shape(const msg::LaunchT& launch, const model::ModelConfig& config);
comm::TraceShape trace_shape(const msg::LaunchT& launch, const model::ModelConfig& config);
MoeOptions moe_options(const msg::LaunchT& launch);
ExecutionOptions execution_options(const msg::LaunchT& launch);
size_t kv_section_bytes(const layers::KvCacheShape& shape);  // of one rank, whole pages

// Who drives a rank's exchanges, and whether it spins when it waits. For a process that has not
// been pinned yet.
comm::CommOptions comm_options(const msg::LaunchT& launch);

// The compute threads of one rank. They spin where this process may use a core for each thread of
// each rank. With `pin` the ranks' threads take the allowed cores in turn.
layers::TeamOptions team_options(const msg::LaunchT& launch, int rank);

// The shared memory a rank inherits.
struct RankDescriptors {
  int arena, weights, kv_cache, observation;
};

// Runs until the launcher says Shutdown. Returns the process' exit status; an error is told to the
// launcher (Failed) and to the other ranks (the arena) before.
int run_rank(int rank, const std::string& launcher_address, const RankDescriptors& descriptors);

}  // namespace troupe::actors
