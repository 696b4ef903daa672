#include <spdlog/spdlog.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/commands.h"
#include "launcher/launch.h"
#include "launcher/report.h"
#include "launcher/requests.h"
#include "model/safetensors.h"

namespace troupe::launcher {

namespace {

using model::Dtype;

bool has(uint8_t observe, msg::Observe bit) { return (observe & static_cast<uint8_t>(bit)) != 0; }

uint8_t observe_bits(const ScoreArguments& arguments) {
  auto bits = static_cast<uint8_t>(msg::Observe::LogProbs);
  if (arguments.dump.empty()) return bits;
  for (const std::string& item : arguments.dump_items) {
    if (item == "logits")
      bits |= static_cast<uint8_t>(msg::Observe::Logits);
    else if (item == "router")
      bits |= static_cast<uint8_t>(msg::Observe::Router);
    else if (item == "mtp")
      bits |= static_cast<uint8_t>(msg::Observe::MtpLogits);
    else
      throw_user_error("--dump-items {}: unknown item; choose from logits, router, mtp", item);
  }
  return bits;
}

// The dump file: what the ranks show goes to its place as it comes.
class Dump {
 public:
  Dump(const std::filesystem::path& path, uint8_t observe, const model::ModelConfig& model,
       const std::vector<actors::Request>& requests)
      : observe_(observe), model_(model), writer_(path, entries(requests)) {}

  void on_observed(int index, const actors::Observation& rows, int first_row, int first_position,
                   int count) {
    const auto write = [&](const std::string& name, const auto& matrix) {
      writer_.write(fmt::format("{}", name), first_position * matrix.cols, matrix.row(first_row),
                    count * matrix.cols);
    };
    if (has(observe_, msg::Observe::Logits)) write(fmt::format("logits.{}", index), rows.logits());
    if (has(observe_, msg::Observe::MtpLogits))
      write(fmt::format("mtp_logits.{}", index), rows.mtp_logits());
    for (const int layer : router_layers()) {
      write(fmt::format("router_ids.{}.{}", index, layer), rows.router_ids(layer));
      write(fmt::format("router_weights.{}.{}", index, layer), rows.router_weights(layer));
    }
  }

  void finish() { writer_.finish(); }

 private:
  std::vector<int> router_layers() const {
    std::vector<int> layers;
    if (!has(observe_, msg::Observe::Router)) return layers;
    for (int layer = 0; layer < model_.num_hidden_layers; ++layer)
      if (model_.is_moe_layer(layer)) layers.push_back(layer);
    if (has(observe_, msg::Observe::MtpLogits)) layers.push_back(model_.num_hidden_layers);
    return layers;
  }

  std::vector<model::SafetensorsWriter::Entry> entries(
      const std::vector<actors::Request>& requests) const {
    std::vector<model::SafetensorsWriter::Entry> entries;
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto tokens = static_cast<int64_t>(requests[i].prompt.size());
      if (has(observe_, msg::Observe::Logits))
        entries.push_back({fmt::format("logits.{}", i), Dtype::kF32, {tokens, model_.vocab_size}});
      if (has(observe_, msg::Observe::MtpLogits))
        entries.push_back(
            {fmt::format("mtp_logits.{}", i), Dtype::kF32, {tokens, model_.vocab_size}});
      for (const int layer : router_layers()) {
        const std::vector<int64_t> shape{tokens, model_.gate.topk};
        entries.push_back({fmt::format("router_ids.{}.{}", i, layer), Dtype::kI32, shape});
        entries.push_back({fmt::format("router_weights.{}.{}", i, layer), Dtype::kF32, shape});
      }
    }
    return entries;
  }

  uint8_t observe_;
  const model::ModelConfig& model_;
  model::SafetensorsWriter writer_;
};

// Sum of log-probabilities and how many tokens have one.
struct Score {
  double sum = 0;
  size_t tokens = 0;
  double perplexity() const {
    return tokens > 0 ? std::exp(-sum / static_cast<double>(tokens)) : 0;
  }
};

Score score_of(const actors::Completion& completion) {
  return {std::accumulate(completion.log_probs.begin(), completion.log_probs.end(), 0.0),
          completion.log_probs.size()};
}

}  // namespace

void score_command(const ScoreArguments& arguments) {
  Config config = read_config(arguments.config);
  require_runnable(config);
  if (!arguments.json.empty()) require_output_path(arguments.json);
  config.model.next_n = 0;  // nothing is generated
  const uint8_t observe = observe_bits(arguments);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  std::vector<actors::Request> requests =
      reading_requests(arguments.text_file, arguments.prompt_ids, config, model, observe);
  if (requests.empty())
    throw_user_error("nothing to score: give --text-file FILE or --prompt-ids 1,2,3");
  std::vector<std::vector<int32_t>> ids;
  for (const actors::Request& request : requests) ids.push_back(request.prompt);
  std::optional<Dump> dump;
  if (!arguments.dump.empty()) dump.emplace(arguments.dump, observe, model, requests);

  const LaunchResult result =
      run_launch(config, model, std::move(requests), observe,
                 {.on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {},
                  .on_observed =
                      [&](int index, const actors::Observation& rows, int first_row,
                          int first_position, int count) {
                        if (dump) dump->on_observed(index, rows, first_row, first_position, count);
                      }});
  if (dump) dump->finish();

  Score total;
  nlohmann::json inputs = nlohmann::json::array();
  for (size_t i = 0; i < ids.size(); ++i) {
    const Score score = score_of(result.completions[i]);
    total.sum += score.sum;
    total.tokens += score.tokens;
    inputs.push_back({{"prompt_ids", ids[i]},
                      {"log_probs", result.completions[i].log_probs},
                      {"sum_log_prob", score.sum},
                      {"perplexity", score.perplexity()}});
  }
  if (total.tokens == 0)
    spdlog::warn("nothing is scored: the first token of an input follows none; give two or more");
  fmt::print("{} tokens, {:.4f} nats per token, perplexity {:.4f}\n", total.tokens,
             total.tokens > 0 ? -total.sum / static_cast<double>(total.tokens) : 0.0,
             total.perplexity());
  if (!arguments.json.empty())
    write_json_file(arguments.json,
                    {{"inputs", std::move(inputs)},
                     {"perplexity", total.perplexity()},
                     {"metrics", metrics_json(config.parallel.world_size, result)}});
}

}  // namespace troupe::launcher
