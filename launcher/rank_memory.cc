#include "launcher/rank_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>

#include "actors/rank.h"
#include "base/checked_size.h"
#include "base/error.h"
#include "launcher/layout_table.h"
#include "model/inventory.h"
#include "model/split.h"
#include "model/weights.h"

namespace troupe::launcher {
namespace {

constexpr int64_t kAssumedPrompt = 1024;  // tokens, where the configuration sets no bound

// As packed by the ranks: what is measured here is what they will hold.
void count_packed(const Config& config, model::ModelConfig model,
                  const model::ParallelLayout& layout, model::WeightOptions options,
                  LaunchMemory& memory) {
  if (options.with_ckpt && !model::has_checkpoint(config.model.model_path) &&
      !model::is_split(config.model.model_path)) {
    memory.weights_remark = fmt::format("no checkpoint in {}: counted from config.json",
                                        config.model.model_path.string());
    options.with_ckpt = false;
  }
  if (!model.not_runnable.empty()) {
    memory.weights_remark = "quantised weights are counted with 8 bits each";
    options.with_ckpt = false;
    model.fp8_weights = true;
  }
  const model::WeightLoader loader(config.model.model_path, model, layout, options);
  memory.shared_weights = loader.shared_bytes();
  memory.weight_files = loader.mapped_bytes();
  memory.layer_weights = loader.layer_bytes(0);
  for (int rank = 0; rank < layout.sizes().world_size; ++rank)
    memory.ranks[rank].private_weights = loader.private_bytes(rank);
}

}  // namespace

// UserError when that is more than any machine has, or can be counted.
static size_t kv_cache_bytes(const layers::KvCacheShape& shape) {
  constexpr size_t kMostBytes = size_t{1} << 47;  // what a process can map
  const auto bytes =
      checked_product<size_t>({static_cast<size_t>(shape.num_layers),
                               static_cast<size_t>(shape.num_blocks), shape.block_bytes()});
  if (!bytes || *bytes > kMostBytes)
    throw_user_error(
        "a rank's KV cache of {} blocks of {} positions in {} layers is larger than memory can be; "
        "use a smaller scheduler_config.batch_size, max_new_tokens or max_prefill_tokens",
        shape.num_blocks, shape.block_size, shape.num_layers);
  return *bytes;
}

size_t LaunchMemory::total() const {
  return std::accumulate(ranks.begin(), ranks.end(), shared_weights,
                         [](size_t sum, const RankMemory& rank) { return sum + rank.total(); });
}

size_t LaunchMemory::fullest_rank() const {
  const auto fullest = std::ranges::max_element(ranks, {}, &RankMemory::total);
  return static_cast<size_t>(fullest - ranks.begin());
}

// fp32 rows of one layer at its widest, and the logits.
size_t workspace_bytes(const model::ModelConfig& model, const model::ParallelLayout& layout,
                       int64_t max_rows, int64_t max_sequences, int num_drafts) {
  const int64_t heads = layout.heads(0).size();
  const int64_t key_width =
      model.uses_gqa() ? 2 * layout.max_kv_heads() * model.v_head_dim : heads * model.kv_width();
  const int64_t attention = heads * (model.qk_head_dim() + model.v_head_dim) + key_width;
  const int64_t moe = model.gate.topk * (2 * model.moe_intermediate_size + model.hidden_size);
  const int64_t mlp = 2 * std::max(model.intermediate_size, model.shared_intermediate_size());
  const int64_t row = 4 * model.hidden_size + std::max({attention, moe, mlp});
  const int64_t logits = max_sequences * (num_drafts + 1) * model.vocab_size;
  return sizeof(float) * static_cast<size_t>(max_rows * row + logits);
}

AssumedLoad largest_load(const Config& config, const model::ModelConfig& model) {
  AssumedLoad assumed{{kAssumedPrompt, 0}, "assumed"};
  if (config.data.input_truncated_len > 0) {
    assumed = {{config.data.input_truncated_len, 0}, "input_truncated_len"};
  } else if (config.scheduler.max_prefill_tokens > 0) {
    assumed = {{config.scheduler.max_prefill_tokens, 0}, "max_prefill_tokens"};
  }
  Load& load = assumed.load;
  load.longest_prompt = std::min(load.longest_prompt, model.max_position_embeddings);
  load.longest_sequence = std::min(load.longest_prompt + config.scheduler.max_new_tokens,
                                   model.max_position_embeddings);
  return assumed;
}

LaunchMemory launch_memory(const Config& config, const model::ModelConfig& model,
                           const model::ParallelLayout& layout,
                           const actors::SchedulerLimits& limits) {
  const msg::LaunchT launch = describe_launch(config, limits, 0);
  const size_t kv_cache = kv_cache_bytes(actors::kv_cache_shape(launch, model));
  LaunchMemory memory;
  for (int rank = 0; rank < limits.world_size; ++rank)
    memory.ranks.push_back(
        {.private_weights = 0,
         .kv_cache = kv_cache,
         .windows = static_cast<size_t>(launch.comm_buffer_bytes),
         .workspace = workspace_bytes(model, layout, limits.max_rows(),
                                      limits.sequences_per_dp_rank(), limits.num_drafts)});
  count_packed(config, model, layout, actors::weight_options(launch), memory);
  return memory;
}

LaunchNeeds assumed_needs(const Config& config, const model::ModelConfig& model) {
  const model::ParallelLayout layout(config.parallel, model);
  const AssumedLoad assumed = largest_load(config, model);
  const auto limits = scheduler_limits(config, model, assumed.load, 0);
  const LaunchMemory memory = launch_memory(config, model, layout, limits);
  const RankMemory& fullest = memory.ranks[memory.fullest_rank()];
  const comm::ArenaShape arena{limits.world_size, fullest.windows};
  return {.ranks = limits.world_size,
          .threads_per_rank = config.runtime.threads_per_rank,
          .memory_bytes = memory.total(),
          .mapped_bytes = RankMappings{.arena = arena.bytes(),
                                       .weights = memory.shared_weights + fullest.private_weights,
                                       .weight_files = memory.weight_files,
                                       .buffers = fullest.kv_cache + fullest.workspace,
                                       .threads = config.runtime.threads_per_rank}
                              .address_space()};
}

namespace {

// What is to be done depends on what takes the room: it is all named.
[[noreturn]] void throw_too_small(const Config& config, const LaunchMemory& memory, size_t rank,
                                  double shared, double device) {
  const auto text = [](size_t bytes) { return bytes_text(static_cast<double>(bytes)); };
  const RankMemory& needs = memory.ranks[rank];
  const double all = static_cast<double>(needs.total()) + shared;
  throw_user_error(
      "rank {} needs {} (weights {} of its own and {} of what is shared, {} for windows, {} for "
      "activations, {} for a KV block), but may take {}: mem_fraction_static {} of {}{}; use less "
      "with runtime_config.weight_format int8 or int4, a smaller comm_buffer_mb, "
      "max_prefill_tokens or block_size, another number of ranks, or raise {}",
      rank, bytes_text(all), text(needs.private_weights), bytes_text(shared), text(needs.windows),
      text(needs.workspace), text(needs.kv_cache),
      bytes_text(device * config.scheduler.mem_fraction_static),
      config.scheduler.mem_fraction_static, bytes_text(device),
      config.runtime.device_memory_gb > 0 ? ""
                                          : fmt::format(" (this machine's {} over {} ranks)",
                                                        text(machine_bytes()), memory.ranks.size()),
      config.runtime.device_memory_gb > 0 ? "runtime_config.device_memory_gb"
                                          : "scheduler_config.mem_fraction_static");
}

}  // namespace

actors::SchedulerLimits serving_limits(const Config& config, const model::ModelConfig& model,
                                       const Load& load, uint8_t observe) {
  actors::SchedulerLimits limits = scheduler_limits(config, model, load, observe);
  const int64_t wished = 2 * limits.blocks_per_dp_rank;
  limits.blocks_per_dp_rank = 1;
  const model::ParallelLayout layout(config.parallel, model);
  const LaunchMemory memory = launch_memory(config, model, layout, limits);
  // Ranks that share a machine share what they all hold alike.
  const bool own_device = config.runtime.device_memory_gb > 0;
  const double device = own_device ? config.runtime.device_memory_gb * (1 << 30)
                                   : static_cast<double>(machine_bytes()) / limits.world_size;
  const double shared =
      static_cast<double>(memory.shared_weights) / (own_device ? 1 : limits.world_size);
  limits.blocks_per_dp_rank = wished;
  for (size_t i = 0; i < memory.ranks.size(); ++i) {
    const RankMemory& rank = memory.ranks[i];
    const double left = device * config.scheduler.mem_fraction_static - shared -
                        static_cast<double>(rank.total() - rank.kv_cache);
    const auto blocks = static_cast<int64_t>(left / static_cast<double>(rank.kv_cache));
    if (blocks < 1) throw_too_small(config, memory, i, shared, device);
    limits.blocks_per_dp_rank = std::min(blocks, limits.blocks_per_dp_rank);
  }
  return limits;
}

size_t machine_bytes() {
  size_t bytes = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  // In a container its own group is the root of what it sees.
  std::vector<std::string> limits{"/sys/fs/cgroup/memory.max",
                                  "/sys/fs/cgroup/memory/memory.limit_in_bytes"};
  std::ifstream groups("/proc/self/cgroup");  // "0::/group", or of version 1 "8:memory:/group"
  for (std::string line; std::getline(groups, line);) {
    const size_t memory = line.find(":memory:/");
    if (line.starts_with("0::/"))
      limits.push_back(fmt::format("/sys/fs/cgroup{}/memory.max", line.substr(3)));
    else if (memory != std::string::npos)
      limits.push_back(
          fmt::format("/sys/fs/cgroup/memory{}/memory.limit_in_bytes", line.substr(memory + 8)));
  }
  for (const std::string& path : limits) {
    std::ifstream limit(path);  // a number, "max", or no such file
    size_t limit_bytes = 0;
    if (limit >> limit_bytes) bytes = std::min(bytes, limit_bytes);
  }
  return bytes;
}

}  // namespace troupe::launcher
