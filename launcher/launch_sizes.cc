#include "launcher/launch_sizes.h"

#include <algorithm>

#include "base/error.h"
#include "launcher/trace_files.h"

namespace troupe::launcher {

Load load_of(const std::vector<actors::Request>& requests, const model::ModelConfig& model) {
  Load load;
  for (const actors::Request& request : requests) {
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    load.longest_prompt = std::max(load.longest_prompt, prompt);
    load.longest_sequence =
        std::max(load.longest_sequence,
                 std::min(prompt + request.max_new_tokens, model.max_position_embeddings));
  }
  return load;
}

actors::SchedulerLimits scheduler_limits(const Config& config, const model::ModelConfig& model,
                                         const Load& load, uint8_t observe) {
  const bool observes_mtp = (observe & static_cast<uint8_t>(msg::Observe::MtpLogits)) != 0;
  if ((config.model.next_n > 0 || observes_mtp) && model.num_nextn_predict_layers == 0)
    throw_user_error(
        "{}: the model has no MTP layer (num_nextn_predict_layers is 0); set "
        "model_config.next_n to 0{}",
        (config.model.model_path / "config.json").string(),
        observes_mtp ? " and do not dump mtp" : "");
  actors::SchedulerLimits limits;
  limits.world_size = config.parallel.world_size;
  limits.attn_tp_size = config.parallel.attn_tp_size;
  limits.batch_size = config.scheduler.batch_size;
  const int64_t wished = config.scheduler.max_prefill_tokens > 0
                             ? config.scheduler.max_prefill_tokens
                             : kDefaultPrefillTokens;
  limits.max_prefill_tokens =
      static_cast<int>(std::min(wished, load.longest_prompt * limits.sequences_per_dp_rank()));
  limits.auto_drafts = config.model.next_n == Config::kAuto && model.num_nextn_predict_layers > 0;
  limits.num_drafts = limits.auto_drafts ? actors::kMaxDrafts : std::max(0, config.model.next_n);
  limits.run_mtp = limits.num_drafts > 0 || observes_mtp;
  limits.max_positions = model.max_position_embeddings;
  limits.block_size = config.scheduler.block_size;
  limits.reserved_decode_tokens = config.scheduler.num_reserved_decode_tokens;
  limits.blocks_per_dp_rank =
      limits.most_blocks(load.longest_sequence, 0) * limits.sequences_per_dp_rank();
  return limits;
}

actors::MoeOptions moe_options(const Config& config) {
  return {.chunk_max_len = config.model.moe_chunk_max_len,
          .deterministic = config.runtime.deterministic,
          .double_routing = config.runtime.moe_dispatch == MoeDispatch::kDoubleRouting,
          .int8_payload = config.runtime.moe_payload == MoePayload::kInt8,
          .force_eplb = config.model.force_eplb};
}

static msg::WeightFormat wire_format(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return msg::WeightFormat::Bf16;
    case WeightFormat::kInt8:
      return msg::WeightFormat::Int8;
    case WeightFormat::kInt4:
      return msg::WeightFormat::Int4;
    case WeightFormat::kMxfp4:
      return msg::WeightFormat::Mxfp4;
    case WeightFormat::kFp8:  // as fp8 checkpoints are; no other is converted to it
    case WeightFormat::kAuto:
      return msg::WeightFormat::Auto;
  }
  TROUPE_CHECK(false, "weight format {}", static_cast<int>(format));
}

msg::LaunchT describe_launch(const Config& config, const actors::SchedulerLimits& limits,
                             uint8_t observe) {
  msg::LaunchT launch;
  launch.world_size = config.parallel.world_size;
  launch.comm_buffer_bytes = static_cast<uint64_t>(config.runtime.comm_buffer_mb) << 20;
  launch.comm_hugepages = config.runtime.comm_hugepages;
  launch.comm_timeout_ms = static_cast<int64_t>(config.runtime.comm_timeout_s * 1000);
  launch.model_path = config.model.model_path.string();
  launch.with_ckpt = config.model.with_ckpt;
  launch.seed = config.data.seed;
  launch.dtype = config.model.dtype == ComputeType::kFloat32 ? msg::DataType::Float32
                                                             : msg::DataType::Bfloat16;
  launch.weight_format = wire_format(config.runtime.weight_format);
  launch.with_mtp = limits.run_mtp;
  launch.attn_tp_size = config.parallel.attn_tp_size;
  launch.dense_tp_size = config.parallel.dense_tp_size;
  launch.moe_tp_size = config.parallel.moe_tp_size;
  launch.embed_tp_size = config.parallel.embed_tp_size;
  launch.lmhead_tp_size = config.parallel.lmhead_tp_size;
  launch.o_proj_tp_size = config.parallel.o_proj_tp_size;
  launch.shared_tp_size = config.parallel.shared_tp_size;
  launch.enable_o_proj_alltoall = config.parallel.enable_o_proj_alltoall;
  launch.max_rows = limits.max_rows();
  launch.max_sequences = limits.sequences_per_dp_rank();
  launch.max_drafts = limits.num_drafts;
  const actors::MoeOptions moe = moe_options(config);
  launch.moe_chunk_max_len = moe.chunk_max_len;
  launch.kv_blocks = limits.blocks_per_dp_rank;
  launch.kv_block_size = limits.block_size;
  launch.observe = observe;
  launch.threads_per_rank = config.runtime.threads_per_rank;
  launch.pin = config.runtime.pin;
  launch.deterministic = moe.deterministic;
  launch.moe_double_routing = moe.double_routing;
  launch.moe_int8_payload = moe.int8_payload;
  launch.comm_thread = config.runtime.comm_mode == CommMode::kThread;
  launch.force_eplb = moe.force_eplb;
  for (const auto& [layer, experts] : config.parallel.expert_placement.layers) {
    auto& placed = *launch.expert_placement.emplace_back(std::make_unique<msg::LayerPlacementT>());
    placed.layer = layer;
    placed.experts = experts;
  }
  launch.graph = config.model.exe_mode == ExeMode::kGraph;
  launch.superkernel = config.model.enable_superkernel;
  launch.multi_streams = config.model.enable_multi_streams;
  launch.faults = config.inject;
  if (!config.trace_dir.empty()) launch.trace_events = trace_events(config.parallel.world_size);
  return launch;
}

}  // namespace troupe::launcher
