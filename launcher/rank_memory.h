// launcher/rank_memory.h: bytes that ranks need, computed from shapes; no weight is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "actors/scheduler.h"
#include "launcher/config.h"
#include "launcher/launch_sizes.h"
#include "launcher/machine_facts.h"
#include "model/model_config.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

struct RankMemory {
  size_t private_weights = 0;
  size_t kv_cache = 0;
  size_t windows = 0;    // comm_buffer_mb, touched only when used
  size_t workspace = 0;  // activations, an estimate

  size_t total() const { return private_weights + kv_cache + windows + workspace; }
};

struct LaunchMemory {
  std::vector<RankMemory> ranks;      // [world size]
  size_t shared_weights = 0;          // held by several ranks alike, once per machine
  size_t weight_files = 0;            // of the checkpoint, mapped while weights are packed
  std::vector<size_t> layer_weights;  // rank 0's part of each decoder layer, own or shared
  std::string weights_remark;         // where the weights counted are not those of the checkpoint

  size_t total() const;
  // What a rank with memory of its own would hold, at most.
  size_t device_total(size_t rank) const { return ranks[rank].total() + shared_weights; }
  size_t fullest_rank() const;
};

// Of a rank's activations, an estimate: steps of so many rows, logits for `max_sequences` times
// 1 + num_drafts of them.
size_t workspace_bytes(const model::ModelConfig& model, const model::ParallelLayout& layout,
                       int64_t max_rows, int64_t max_sequences, int num_drafts);

// The largest load a configuration allows, where it sets no bound one that is assumed.
struct AssumedLoad {
  Load load;
  const char* prompt_source = "";  // the key that bounds the prompt, or "assumed"
};
AssumedLoad largest_load(const Config& config, const model::ModelConfig& model);

// UserError when a checkpoint is there and wrong. One that is not there at all is a remark: a
// cluster's configuration can be checked anywhere.
LaunchMemory launch_memory(const Config& config, const model::ModelConfig& model,
                           const model::ParallelLayout& layout,
                           const actors::SchedulerLimits& limits);

// Of the largest load that a configuration allows, for `doctor`.
LaunchNeeds assumed_needs(const Config& config, const model::ModelConfig& model);

// The limits of ranks that are started: scheduler_limits() with KV pools as large as the memory of
// the fullest rank allows: mem_fraction_static of device_memory_gb (of the machine's share where
// that is 0), less weights, windows and activations. Not more than twice what the load needs: as
// much again keeps prefixes for reuse. UserError naming what takes the room where not one block
// fits.
actors::SchedulerLimits serving_limits(const Config& config, const model::ModelConfig& model,
                                       const Load& load, uint8_t observe);

// Of the machine, or of the control group this process runs in.
size_t machine_bytes();

}  // namespace troupe::launcher
