#include "launcher/check.h"

#include <fmt/format.h>

#include <iterator>

#include "base/error.h"
#include "launcher/config_keys.h"
#include "launcher/launch_sizes.h"
#include "launcher/layout_table.h"
#include "launcher/rank_memory.h"
#include "launcher/traffic.h"

namespace troupe::launcher {
namespace {

std::string bytes_text(size_t bytes) { return launcher::bytes_text(static_cast<double>(bytes)); }

class Report {
 public:
  Report(const Config& config, const model::ModelConfig& model)
      : config_(config),
        model_(model),
        layout_(config.parallel, model),
        assumed_(largest_load(config, model)),
        limits_(scheduler_limits(config, model, assumed_.load, 0)),
        memory_(launch_memory(config, model, layout_, limits_)),
        budget_(static_cast<size_t>(config.scheduler.mem_fraction_static *
                                    static_cast<double>(machine_bytes()))) {}

  std::string text() {
    write_model();
    write_layout();
    out_ += layout_picture(model_, layout_);
    out_ += axis_table(model_, layout_);
    out_ += '\n';
    out_ += rank_table(model_, layout_, memory_);
    write_traffic();
    write_memory();
    write_lines("keys of an NPU:", config_.notes);
    std::vector<std::string> refused = not_runnable(config_);
    if (!model_.not_runnable.empty()) refused.push_back(model_.not_runnable);
    write_lines("run cannot do yet:", refused);
    return out_;
  }

  // Throws UserError with the numbers when this machine, or a simulated device, is too small.
  void require_fit() const {
    if (memory_.total() > budget_) {
      throw_user_error(
          "{} ranks need {}, this machine has {} for them (mem_fraction_static {} of "
          "{}); use fewer sequences, shorter prompts or a machine with more memory",
          limits_.world_size, bytes_text(memory_.total()), bytes_text(budget_),
          config_.scheduler.mem_fraction_static, bytes_text(machine_bytes()));
    }
    if (!fits_device()) {
      throw_user_error(
          "rank {} needs {}, runtime_config.device_memory_gb is {} GiB; use more ranks or fewer "
          "sequences",
          memory_.fullest_rank(), bytes_text(memory_.device_total(memory_.fullest_rank())),
          config_.runtime.device_memory_gb);
    }
  }

 private:
  bool fits_device() const {
    const double limit = config_.runtime.device_memory_gb * (1 << 30);
    return limit == 0 || static_cast<double>(memory_.device_total(memory_.fullest_rank())) <= limit;
  }

  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
    out_ += '\n';
  }

  void write_model() {
    int moe_layers = 0;
    for (int i = 0; i < model_.num_hidden_layers; ++i) moe_layers += model_.is_moe_layer(i);
    line("model    {} ({}): {} layers, {} of them MoE{}", config_.model.model_path.string(),
         model_.model_type, model_.num_hidden_layers, moe_layers,
         model_.num_nextn_predict_layers > 0 ? ", and an MTP module" : "");
    line("         hidden {}, {} heads, vocabulary {}, at most {} positions", model_.hidden_size,
         model_.num_attention_heads, model_.vocab_size, model_.max_position_embeddings);
    if (moe_layers > 0) {
      line("         {} experts, {} per token, {} shared", model_.n_routed_experts,
           model_.gate.topk, model_.n_shared_experts);
    }
    line("         {}, {}, next_n {}",
         config_.model.dtype == ComputeType::kFloat32 ? "float32" : "bfloat16",
         config_.model.with_ckpt ? "weights of the checkpoint" : "random weights",
         config_.model.next_n == Config::kAuto ? "auto" : std::to_string(config_.model.next_n));
    if (!memory_.weights_remark.empty()) line("         {}", memory_.weights_remark);
  }

  void write_layout() {
    const model::ParallelSizes& sizes = config_.parallel;
    line("layout   {} ranks = attention DP {} x TP {} = experts EP {} x TP {}", sizes.world_size,
         sizes.attn_dp_size(), sizes.attn_tp_size, sizes.moe_ep_size(), sizes.moe_tp_size);
    if (!sizes.expert_placement.empty())
      line("         {} places for {} experts ({})", layout_.num_physical_experts(),
           model_.n_routed_experts, sizes.expert_placement.source);
    if (sizes.cp_size > 1) line("         CP {}: a prompt's tokens are cut too", sizes.cp_size);
  }

  // The best logit of each rank where decoding is greedy, its top_k, or all of them.
  void write_traffic() {
    const bool is_float32 = config_.model.dtype == ComputeType::kFloat32;
    const bool all = config_.data.temperature > 0 && config_.data.top_k == 0;
    const int candidates = config_.data.temperature > 0 ? config_.data.top_k : 1;
    const auto rows = token_traffic(model_, layout_, is_float32 ? 4 : 2, all ? 0 : candidates,
                                    moe_options(config_));
    if (rows.empty()) return line("\ntraffic  none: no two ranks exchange rows");
    line("\ntraffic  bytes a rank sends for each token it owns (all ranks together: per token)");
    line("{:<15} {:<36} {:<10} {:>5} {:>6} {:>11} {:>11}", "stage", "collective", "axis", "ranks",
         "layers", "a layer", "in all");
    double total = 0;
    for (const Traffic& t : rows) {
      const double sum = t.bytes * t.layers;
      total += sum;
      line("{:<15} {:<36} {:<10} {:>5} {:>6} {:>11.0f} {:>11.0f}{}", t.stage, t.collective, t.axis,
           t.group_size, t.layers, t.bytes, sum, t.is_mean ? "  mean" : "");
    }
    line("{:<15} {:<36} {:<10} {:>5} {:>6} {:>11} {:>11.0f}", "all", "", "", "", "", "", total);
    line("mean: experts, or token ids, with equal chance; the LM head's for sampled tokens only;");
    line("and {} bytes of counts for each forward pass, whatever its tokens",
         forward_overhead_bytes(layout_));
    out_ += '\n';
  }

  void write_memory() {
    if (!memory_.layer_weights.empty())
      line("layers   weights of each that a rank holds, alone or with others: {}\n",
           layers_text(memory_.layer_weights));
    line("memory   weights that several ranks hold alike: {}, once per machine",
         bytes_text(memory_.shared_weights));
    line("         windows: up to {} a rank (comm_buffer_mb), touched when used",
         bytes_text(memory_.ranks.front().windows));
    line("         KV cache: for batch_size / DP = {} in flight a rank, each with {} positions, in",
         limits_.sequences_per_dp_rank(),
         limits_.most_positions(assumed_.load.longest_sequence, 0));
    line("         blocks of {}: a prompt of {} ({}) and max_new_tokens",
         config_.scheduler.block_size, assumed_.load.longest_prompt, assumed_.prompt_source);
    line("         in all {}; this machine has {}, of which {} for ranks: {}",
         bytes_text(memory_.total()), bytes_text(machine_bytes()), bytes_text(budget_),
         memory_.total() <= budget_ ? "fits" : "DOES NOT FIT");
    if (config_.runtime.device_memory_gb > 0) {
      line("         rank {} as a device of its own: {} of {} GiB: {}", memory_.fullest_rank(),
           bytes_text(memory_.device_total(memory_.fullest_rank())),
           config_.runtime.device_memory_gb, fits_device() ? "fits" : "DOES NOT FIT");
    }
  }

  void write_lines(const char* title, const std::vector<std::string>& lines) {
    if (lines.empty()) return;
    line("\n{}", title);
    for (const std::string& text : lines) line("  {}", text);
  }

  const Config& config_;
  const model::ModelConfig& model_;
  model::ParallelLayout layout_;
  AssumedLoad assumed_;
  actors::SchedulerLimits limits_;
  LaunchMemory memory_;
  size_t budget_;
  std::string out_;
};

}  // namespace

std::string check_report(const Config& config, bool fit) {
  const model::ModelConfig model =
      model::read_model_config(config.model.model_path, model::ModelUse::kCheck);
  Report report(config, model);
  if (fit) report.require_fit();
  return report.text();
}

}  // namespace troupe::launcher
