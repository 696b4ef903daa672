#include "launcher/check.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <vector>

#include "base/error.h"
#include "launcher/config_keys.h"
#include "layers/kv_cache.h"
#include "model/parallel_layout.h"
#include "model/weights.h"

namespace troupe::launcher {
namespace {

// Where the configuration sets no bound.
constexpr int64_t kAssumedPrompt = 1024;  // tokens
constexpr int64_t kAssumedStep = 512;     // prompt tokens of a rank's step

// The load of one rank that memory is computed for.
struct Load {
  int64_t sequences = 0;  // in flight
  int64_t prompt = 0;     // tokens of one
  int64_t positions = 0;  // of one, to the end of generation
  int64_t rows = 0;       // tokens of the largest step
};

Load largest_load(const Config& config, const model::ModelConfig& model) {
  const auto& scheduler = config.scheduler;
  const int64_t per_step = config.model.next_n + 1;
  const int64_t attn_dp = config.parallel.attn_dp_size();
  Load load;
  load.sequences = (scheduler.batch_size + attn_dp - 1) / attn_dp;
  load.prompt = config.data.input_truncated_len > 0 ? config.data.input_truncated_len
                : scheduler.max_prefill_tokens > 0  ? scheduler.max_prefill_tokens
                                                    : kAssumedPrompt;
  load.prompt = std::min(load.prompt, model.max_position_embeddings);
  load.positions =
      std::min(load.prompt + scheduler.max_new_tokens, model.max_position_embeddings) + per_step;
  const int64_t step =
      scheduler.max_prefill_tokens > 0 ? scheduler.max_prefill_tokens : kAssumedStep;
  const int64_t prefill = std::min(step, load.prompt * load.sequences);
  load.rows = std::max(prefill, load.sequences * per_step);
  return load;
}

size_t kv_cache_bytes(const Config& config, const model::ModelConfig& model, const Load& load) {
  const int64_t block_size = config.scheduler.block_size;
  const layers::KvCacheShape shape{
      .num_layers = model.num_hidden_layers + (config.model.next_n > 0 ? 1 : 0),
      .num_blocks = load.sequences * ((load.positions + block_size - 1) / block_size),
      .block_size = config.scheduler.block_size,
      .width = model.kv_width(),
      .type = config.model.dtype == ComputeType::kFloat32 ? layers::KvType::kF32
                                                          : layers::KvType::kBf16};
  return shape.bytes();
}

// fp32 rows of one layer at its widest, and the logits.
size_t workspace_bytes(const Config& config, const model::ModelConfig& model, const Load& load) {
  const int64_t heads = model.num_attention_heads / config.parallel.attn_tp_size;
  const int64_t attention = heads * (model.qk_head_dim() + model.kv_width() + model.v_head_dim);
  const int64_t moe = model.gate.topk * (2 * model.moe_intermediate_size + model.hidden_size);
  const int64_t mlp = 2 * std::max(model.intermediate_size, model.shared_intermediate_size());
  const int64_t row = 4 * model.hidden_size + std::max({attention, moe, mlp});
  const int64_t logits = load.sequences * (config.model.next_n + 1) * model.vocab_size;
  return sizeof(float) * static_cast<size_t>(load.rows * row + logits);
}

// Of the machine or of the control group this process runs in.
size_t machine_bytes() {
  size_t bytes = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::ifstream limit("/sys/fs/cgroup/memory.max");  // a number, "max", or no such file
  size_t limit_bytes = 0;
  if (limit >> limit_bytes) bytes = std::min(bytes, limit_bytes);
  return bytes;
}

std::string bytes_text(size_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= size_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  if (bytes >= size_t{1} << 20) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.1f} KiB", value / (1 << 10));
}

// "0-7", "3", "none"
std::string range_text(const model::Range& range) {
  if (range.size() == 0) return "none";
  if (range.size() == 1) return fmt::format("{}", range.begin);
  return fmt::format("{}-{}", range.begin, range.end - 1);
}

model::WeightOptions weight_options(const Config& config) {
  const bool is_float32 = config.model.dtype == ComputeType::kFloat32;
  return {.with_ckpt = config.model.with_ckpt,
          .seed = config.data.seed,
          .with_mtp = config.model.next_n > 0,
          .format = config.runtime.weight_format == WeightFormat::kBf16
                        ? model::WeightOptions::Format::kBf16
                        : model::WeightOptions::Format::kAuto,
          .exact_kv_b = is_float32};
}

class Report {
 public:
  Report(const Config& config, const model::ModelConfig& model)
      : config_(config),
        model_(model),
        layout_(config.parallel, model),
        load_(largest_load(config, model)) {
    const model::WeightLoader loader(config.model.model_path, model, layout_,
                                     weight_options(config));
    shared_ = loader.shared_bytes();
    for (int rank = 0; rank < world_size(); ++rank) {
      ranks_.push_back({.private_weights = loader.private_bytes(rank),
                        .shared_weights = shared_,
                        .kv_cache = kv_cache_bytes(config, model, load_),
                        .windows = static_cast<size_t>(config.runtime.comm_buffer_mb) << 20,
                        .workspace = workspace_bytes(config, model, load_)});
      total_ += own_bytes(ranks_.back());
    }
    total_ += shared_;
    budget_ = static_cast<size_t>(config.scheduler.mem_fraction_static *
                                  static_cast<double>(machine_bytes()));
  }

  std::string text() {
    write_model();
    write_layout();
    write_ranks();
    write_memory();
    write_lines("ignored on a CPU:", config_.notes);
    write_lines("run cannot do yet:", not_runnable(config_));
    return out_;
  }

  // Throws UserError with the numbers when this machine, or a simulated device, is too small.
  void require_fit() const {
    if (total_ > budget_) {
      throw_user_error(
          "{} ranks need {}, this machine has {} for them (mem_fraction_static {} of "
          "{}); use fewer sequences, shorter prompts or a machine with more memory",
          world_size(), bytes_text(total_), bytes_text(budget_),
          config_.scheduler.mem_fraction_static, bytes_text(machine_bytes()));
    }
    if (!fits_device()) {
      throw_user_error(
          "rank {} needs {}, runtime_config.device_memory_gb is {} GiB; use more ranks or fewer "
          "sequences",
          fullest_rank(), bytes_text(device_bytes(fullest_rank())),
          config_.runtime.device_memory_gb);
    }
  }

 private:
  int world_size() const { return config_.parallel.world_size; }

  // What a rank adds to the machine.
  static size_t own_bytes(const RankMemory& memory) {
    return memory.private_weights + memory.kv_cache + memory.windows + memory.workspace;
  }
  // What a device of its own would hold.
  size_t device_bytes(size_t rank) const {
    return own_bytes(ranks_[rank]) + ranks_[rank].shared_weights;
  }
  size_t fullest_rank() const {
    const auto less = [](const RankMemory& a, const RankMemory& b) {
      return own_bytes(a) < own_bytes(b);
    };
    return static_cast<size_t>(std::max_element(ranks_.begin(), ranks_.end(), less) -
                               ranks_.begin());
  }
  bool fits_device() const {
    const double limit = config_.runtime.device_memory_gb * (1 << 30);
    return limit == 0 || static_cast<double>(device_bytes(fullest_rank())) <= limit;
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
         config_.model.next_n);
  }

  void write_layout() {
    const model::ParallelSizes& sizes = config_.parallel;
    line("layout   {} ranks = attention DP {} x TP {} = experts EP {} x TP {}", world_size(),
         sizes.attn_dp_size(), sizes.attn_tp_size, sizes.moe_ep_size(), sizes.moe_tp_size);
    line(
        "         TP of dense MLP {}, shared experts {}, o_proj {}, embedding {}, LM head {}; CP "
        "{}",
        sizes.dense_tp_size, sizes.shared_tp_size, layout_.o_proj_tp_size(), sizes.embed_tp_size,
        sizes.lmhead_tp_size, sizes.cp_size);
  }

  void write_ranks() {
    constexpr int kShownWhole = 16, kShownEnd = 4;
    line("");
    line("{:>5}  {:>4}  {:>11}  {:>11}  {:>11}  {:>11}  {:>11}", "rank", "DP", "heads", "experts",
         "weights", "KV cache", "workspace");
    for (int rank = 0; rank < world_size(); ++rank) {
      if (world_size() > kShownWhole && rank == kShownEnd) {
        line("{:>5}", "...");
        rank = world_size() - kShownEnd;
      }
      const RankMemory& memory = ranks_[rank];
      line("{:>5}  {:>4}  {:>11}  {:>11}  {:>11}  {:>11}  {:>11}", rank, layout_.dp_rank(rank),
           range_text(layout_.heads(rank)), range_text(layout_.experts(rank)),
           bytes_text(memory.private_weights), bytes_text(memory.kv_cache),
           bytes_text(memory.workspace));
    }
    line("");
  }

  void write_memory() {
    line("memory   weights that several ranks hold alike: {}, once per machine",
         bytes_text(shared_));
    line("         windows: up to {} a rank (comm_buffer_mb), touched when used",
         bytes_text(ranks_.front().windows));
    line("         KV cache: for batch_size / DP = {} in flight a rank, each with {} positions, in",
         load_.sequences, load_.positions);
    line("         blocks of {}: a prompt of {} ({}) and max_new_tokens",
         config_.scheduler.block_size, load_.prompt, prompt_source());
    line("         in all {}; this machine has {}, of which {} for ranks: {}", bytes_text(total_),
         bytes_text(machine_bytes()), bytes_text(budget_),
         total_ <= budget_ ? "fits" : "DOES NOT FIT");
    if (config_.runtime.device_memory_gb > 0) {
      line("         rank {} as a device of its own: {} of {} GiB: {}", fullest_rank(),
           bytes_text(device_bytes(fullest_rank())), config_.runtime.device_memory_gb,
           fits_device() ? "fits" : "DOES NOT FIT");
    }
  }

  const char* prompt_source() const {
    if (config_.data.input_truncated_len > 0) return "input_truncated_len";
    if (config_.scheduler.max_prefill_tokens > 0) return "max_prefill_tokens";
    return "assumed";
  }

  void write_lines(const char* title, const std::vector<std::string>& lines) {
    if (lines.empty()) return;
    line("\n{}", title);
    for (const std::string& text : lines) line("  {}", text);
  }

  const Config& config_;
  const model::ModelConfig& model_;
  model::ParallelLayout layout_;
  Load load_;
  std::vector<RankMemory> ranks_;
  size_t shared_ = 0, total_ = 0, budget_ = 0;
  std::string out_;
};

}  // namespace

std::string check_report(const Config& config, bool fit) {
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  Report report(config, model);
  if (fit) report.require_fit();
  return report.text();
}

}  // namespace troupe::launcher
