#include "launcher/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "actors/rank.h"
#include "launcher/launch_sizes.h"
#include "launcher/layout_table.h"
#include "model/chat_template.h"
#include "model/tokenizer_file.h"

namespace troupe::launcher {
namespace {

using model::TensorCount;
using nlohmann::ordered_json;

// "671.03 B", "8.99 M"
std::string count_text(int64_t parameters) {
  const auto number = static_cast<double>(parameters);
  if (parameters >= 1'000'000'000) return fmt::format("{:.2f} B", number * 1e-9);
  if (parameters >= 1'000'000) return fmt::format("{:.2f} M", number * 1e-6);
  return fmt::format("{}", parameters);
}

std::string bytes_text(size_t bytes) { return launcher::bytes_text(static_cast<double>(bytes)); }

std::vector<size_t> layer_bytes(const model::Inventory& inventory) {
  std::vector<size_t> bytes;
  for (const TensorCount& layer : inventory.layers) bytes.push_back(layer.bytes);
  return bytes;
}

int num_moe_layers(const model::ModelConfig& model) {
  int layers = 0;
  for (int i = 0; i < model.num_hidden_layers; ++i) layers += model.is_moe_layer(i);
  return layers;
}

std::string attention_text(const model::ModelConfig& model) {
  if (!model.uses_gqa())
    return fmt::format(
        "MLA, {} heads, latent {} + {}{}", model.num_attention_heads, model.kv_lora_rank,
        model.qk_rope_head_dim,
        model.q_lora_rank > 0 ? fmt::format(", of queries {}", model.q_lora_rank) : "");
  return fmt::format("GQA, {} heads of {}, {} KV heads{}", model.num_attention_heads,
                     model.v_head_dim, model.num_key_value_heads,
                     model.sliding_layers.empty()
                         ? ""
                         : fmt::format(", windows of {} in some layers", model.sliding_window));
}

std::string gate_text(const layers::TopkGateConfig& gate) {
  std::string text = gate.score == layers::ScoreFunction::kSigmoid ? "sigmoid" : "softmax";
  if (gate.score == layers::ScoreFunction::kSoftmaxOfChosen) text += " of the chosen";
  if (gate.num_groups > 1)
    text += fmt::format(", from {} of {} groups", gate.topk_groups, gate.num_groups);
  return text;
}

// Bytes of the KV cache with `dtype: bfloat16`, on one rank.
struct KvBytes {
  size_t per_token = 0;  // of the layers that see all positions
  size_t window = 0;     // of the others, whose rows behind the window are given up
};

KvBytes kv_bytes(const model::ModelConfig& model, KvFormat format) {
  Config config;
  config.runtime.kv_cache_format = format;
  const size_t row = actors::kv_cache_shape(describe_launch(config, {}, 0), model).row_bytes();
  const auto sliding = static_cast<size_t>(std::ranges::count(model.sliding_layers, true));
  return {.per_token = row * (static_cast<size_t>(model.num_hidden_layers) - sliding),
          .window = row * sliding * static_cast<size_t>(model.sliding_window)};
}

class Text {
 public:
  explicit Text(const Inspection& of) : of_(of), model_(of.model), inventory_(of.inventory) {}

  std::string write() {
    write_model();
    write_weights();
    line("tokenizer", "{}{}", of_.tokenizer.empty() ? "none" : of_.tokenizer,
         of_.has_chat_template ? ", with a chat template" : "");
    if (!model_.not_runnable.empty()) line("remark", "{}", model_.not_runnable);
    if (of_.layout) write_layout();
    return std::move(out_);
  }

 private:
  template <class... Args>
  void line(const char* name, fmt::format_string<Args...> format, Args&&... args) {
    out_ += fmt::format("{:<11} {}\n", name, fmt::format(format, std::forward<Args>(args)...));
  }

  void write_model() {
    const int64_t active = inventory_.active(model_);
    line(
        "model", "{}, {} parameters, {} of them active for a token ({} with the embedding)",
        model_.model_type, count_text(inventory_.main().parameters), count_text(active),
        count_text(model_.tie_word_embeddings ? active : active + inventory_.embedding.parameters));
    const int moe = num_moe_layers(model_);
    line("layers", "{}: {} dense, {} with experts", model_.num_hidden_layers,
         model_.num_hidden_layers - moe, moe);
    line("sizes", "hidden {}, vocabulary {}, at most {} positions", model_.hidden_size,
         model_.vocab_size, model_.max_position_embeddings);
    line("attention", "{}", attention_text(model_));
    const KvBytes bf16 = kv_bytes(model_, KvFormat::kDtype);
    const KvBytes int8 = kv_bytes(model_, KvFormat::kInt8);
    line("KV cache", "{} a token in bf16, {} in int8{}", bytes_text(bf16.per_token),
         bytes_text(int8.per_token), model_.int8_kv_cache ? " (as the checkpoint says)" : "");
    if (model_.has_window())
      line("", "and {}, in int8 {}, for the last {} tokens in layers with a window",
           bytes_text(bf16.window), bytes_text(int8.window), model_.sliding_window);
    if (moe > 0)
      line("experts", "{}, {} chosen by {}, {} shared; each {} parameters", model_.n_routed_experts,
           model_.gate.topk, gate_text(model_.gate), model_.n_shared_experts,
           count_text(inventory_.experts.parameters / model_.n_routed_experts / moe));
    if (model_.num_nextn_predict_layers > 0)
      line("MTP", "{} parameters of its own", count_text(inventory_.mtp.parameters));
  }

  void write_weights() {
    line("weights", "{}, {}", bytes_text(inventory_.all().bytes),
         inventory_.from_files ? "counted from the safetensors files"
                               : "no weights here: counted from config.json");
    for (const auto& [name, count] : inventory_.types)
      line("", "{}: {} parameters in {} tensors, {}", name, count_text(count.parameters),
           count.tensors, bytes_text(count.bytes));
    line("", "embedding: {}, head: {}{}", bytes_text(inventory_.embedding.bytes),
         bytes_text(inventory_.head.bytes),
         inventory_.mtp.tensors == 0
             ? ""
             : fmt::format(", MTP: {}, its copies of both: {}", bytes_text(inventory_.mtp.bytes),
                           bytes_text(inventory_.mtp_copies.bytes)));
    line("", "layers {}", layers_text(layer_bytes(inventory_)));
    if (inventory_.unused.tensors > 0)
      line("", "not used: {} tensors, {}, '{}' first", inventory_.unused.tensors,
           bytes_text(inventory_.unused.bytes), inventory_.first_unused);
  }

  void write_layout() {
    const auto& [config, memory] = *of_.layout;
    out_ += fmt::format("\n{} ranks of this layout need\n", config.parallel.world_size);
    out_ += rank_table(model_, model::ParallelLayout(config.parallel, model_), memory);
    out_ += fmt::format("and {} of weights that several ranks hold alike; in all {}\n",
                        bytes_text(memory.shared_weights), bytes_text(memory.total()));
  }

  const Inspection& of_;
  const model::ModelConfig& model_;
  const model::Inventory& inventory_;
  std::string out_;
};

ordered_json to_json(const TensorCount& count) {
  return {{"tensors", count.tensors}, {"parameters", count.parameters}, {"bytes", count.bytes}};
}

ordered_json layers_json(const Inspection& of) {
  ordered_json layers = ordered_json::array();
  for (int i = 0; i < of.model.num_hidden_layers; ++i) {
    ordered_json layer = to_json(of.inventory.layers[i]);
    layer["experts"] = of.model.is_moe_layer(i);
    layer["window"] = of.model.window_of(i);
    layers.push_back(layer);
  }
  return layers;
}

ordered_json attention_json(const model::ModelConfig& model) {
  const KvBytes bf16 = kv_bytes(model, KvFormat::kDtype);
  const KvBytes int8 = kv_bytes(model, KvFormat::kInt8);
  ordered_json json{
      {"kind", model.uses_gqa() ? "gqa" : "mla"}, {"heads", model.num_attention_heads},
      {"kv_bytes_per_token", bf16.per_token},     {"kv_bytes_per_token_int8", int8.per_token},
      {"kv_window_bytes", bf16.window},           {"kv_window_bytes_int8", int8.window},
      {"int8_kv_cache", model.int8_kv_cache}};
  if (model.uses_gqa()) {
    json["kv_heads"] = model.num_key_value_heads;
    json["head_dim"] = model.v_head_dim;
  } else {
    json["q_lora_rank"] = model.q_lora_rank;
    json["kv_lora_rank"] = model.kv_lora_rank;
    json["qk_rope_head_dim"] = model.qk_rope_head_dim;
  }
  return json;
}

ordered_json layout_json(const Inspection::Layout& layout) {
  const auto& [config, memory] = layout;
  ordered_json ranks = ordered_json::array();
  for (const RankMemory& rank : memory.ranks)
    ranks.push_back({{"private_weights", rank.private_weights},
                     {"kv_cache", rank.kv_cache},
                     {"windows", rank.windows},
                     {"workspace", rank.workspace},
                     {"total", rank.total()}});
  return {{"world_size", config.parallel.world_size},
          {"attn_tp_size", config.parallel.attn_tp_size},
          {"moe_tp_size", config.parallel.moe_tp_size},
          {"moe_ep_size", config.parallel.moe_ep_size()},
          {"shared_weights", memory.shared_weights},
          {"total", memory.total()},
          {"ranks", ranks}};
}

}  // namespace

Inspection inspect(const std::filesystem::path& directory, const std::filesystem::path& layout) {
  Inspection result{.directory = directory,
                    .model = model::read_model_config(directory, model::ModelUse::kCheck)};
  result.inventory = model::take_inventory(directory, result.model);
  result.tokenizer = model::tokenizer_file_name(directory);
  result.has_chat_template = model::ChatTemplate::exists(directory);
  if (layout.empty()) return result;
  const Config config = read_config(layout, {"model_config.model_path=" + directory.string()});
  const model::ParallelLayout ranks(config.parallel, result.model);
  const AssumedLoad assumed = largest_load(config, result.model);
  const actors::SchedulerLimits limits = scheduler_limits(config, result.model, assumed.load, 0);
  result.layout = {config, launch_memory(config, result.model, ranks, limits)};
  return result;
}

std::string inspection_text(const Inspection& inspection) { return Text(inspection).write(); }

ordered_json inspection_json(const Inspection& of) {
  const model::Inventory& inventory = of.inventory;
  ordered_json json{
      {"directory", of.directory.string()},
      {"model_type", of.model.model_type},
      {"weights", inventory.from_files ? "files" : "config.json"},
      {"parameters",
       {{"total", inventory.main().parameters},
        {"active", inventory.active(of.model)},
        {"embedding", inventory.embedding.parameters},
        {"head", inventory.head.parameters},
        {"experts", inventory.experts.parameters},
        {"mtp", inventory.mtp.parameters}}},
      {"bytes", inventory.all().bytes},
      {"types", ordered_json::object()},
      {"attention", attention_json(of.model)},
      {"experts",
       {{"routed", of.model.n_routed_experts},
        {"chosen", of.model.n_routed_experts > 0 ? of.model.gate.topk : 0},
        {"shared", of.model.n_shared_experts}}},
      {"layers", layers_json(of)},
      {"tokenizer", of.tokenizer.empty() ? ordered_json() : ordered_json(of.tokenizer)},
      {"chat_template", of.has_chat_template}};
  for (const auto& [name, count] : inventory.types) json["types"][name] = to_json(count);
  if (of.layout) json["layout"] = layout_json(*of.layout);
  return json;
}

}  // namespace troupe::launcher
