#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/commands.h"
#include "launcher/launch.h"
#include "launcher/report.h"
#include "launcher/requests.h"

namespace troupe::launcher {

namespace {

using model::StreamDecoder;
using model::Tokenizer;

std::vector<Prompt> collect_prompts(const RunArguments& arguments, const Config& config) {
  std::vector<Prompt> prompts;
  for (const std::string& text : arguments.prompts) prompts.push_back({text, std::nullopt});
  if (!arguments.prompt_file.empty()) {
    auto from_file = read_prompt_file(arguments.prompt_file);
    prompts.insert(prompts.end(), from_file.begin(), from_file.end());
  }
  for (const std::string& ids : arguments.prompt_ids) prompts.push_back({"", parse_ids(ids)});
  const Config::Data& data = config.data;
  if (prompts.empty() && (!data.dataset_path.empty() || data.dataset.ends_with(".jsonl")))
    prompts = read_dataset(data.dataset, data.dataset_path);
  if (prompts.empty())
    throw_user_error(
        "no prompt: give --prompt TEXT, --prompt-file FILE.json or --prompt-ids 1,2,3, "
        "or set data_config.dataset_path");
  return prompts;
}

actors::Request make_request(const Config& config, const model::ModelConfig& model,
                             std::vector<int32_t> prompt, bool ignore_eos) {
  actors::Request request;
  request.prompt = std::move(prompt);
  request.max_new_tokens = config.scheduler.max_new_tokens;
  if (!ignore_eos) request.stop_ids.insert(model.eos_token_ids.begin(), model.eos_token_ids.end());
  request.temperature = static_cast<float>(config.data.temperature);
  request.top_p = static_cast<float>(config.data.top_p);
  request.top_k = config.data.top_k;
  request.seed = config.data.seed;
  return request;
}

// Writes answers to stdout: a single one as it comes, several whole and in order, with an empty
// line between them.
class AnswerPrinter {
 public:
  AnswerPrinter(const Tokenizer* tokenizer, size_t answers) : answers_(answers) {
    for (Answer& answer : answers_)
      if (tokenizer != nullptr) answer.decoder.emplace(*tokenizer);
  }

  void on_tokens(int index, std::span<const int32_t> tokens, actors::FinishReason reason) {
    Answer& answer = answers_[index];
    for (const int32_t token : tokens)
      answer.unprinted += answer.decoder ? answer.decoder->push(token) : fmt::format(" {}", token);
    if (reason != actors::FinishReason::kNone) {
      if (answer.decoder) answer.unprinted += answer.decoder->finish();
      answer.unprinted += '\n';
      answer.finished = true;
    }
    print();
  }

 private:
  struct Answer {
    std::optional<StreamDecoder> decoder;
    std::string unprinted;
    bool finished = false;
  };

  void print() {
    while (next_ < answers_.size() && (answers_.size() == 1 || answers_[next_].finished)) {
      Answer& answer = answers_[next_];
      std::fwrite(answer.unprinted.data(), 1, answer.unprinted.size(), stdout);
      answer.unprinted.clear();
      if (!answer.finished) break;
      if (++next_ < answers_.size()) std::fputc('\n', stdout);
    }
    std::fflush(stdout);
  }

  std::vector<Answer> answers_;
  size_t next_ = 0;
};

nlohmann::json output_json(const Prompt& prompt, const std::vector<int32_t>& prompt_ids,
                           const actors::Completion& completion, const Tokenizer* tokenizer) {
  const bool stopped = completion.reason == actors::FinishReason::kStop;
  return {{"prompt", prompt.text},
          {"prompt_ids", prompt_ids},
          {"output_ids", completion.tokens},
          {"text", tokenizer != nullptr ? tokenizer->decode(completion.tokens) : ""},
          {"finish_reason", stopped ? "stop" : "length"},
          {"mtp", {{"drafted", completion.drafted}, {"accepted", completion.accepted}}}};
}

}  // namespace

void run_command(const RunArguments& arguments) {
  const Config config = read_config(arguments.config.config, arguments.config.overrides);
  for (const std::string& note : config.notes) spdlog::info("{}", note);
  require_runnable(config);
  if (!arguments.json.empty()) require_output_path(arguments.json);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const auto tokenizer = find_tokenizer(config.model.model_path);
  const Tokenizer* tokenizer_or_null = tokenizer ? &*tokenizer : nullptr;

  std::vector<Prompt> prompts = collect_prompts(arguments, config);
  if (arguments.chat)
    apply_chat_template(prompts, tokenizer_or_null, config, arguments.chat_template);
  std::vector<std::vector<int32_t>> prompt_ids;
  std::vector<actors::Request> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto ids = prompt_tokens(prompts[i], tokenizer_or_null, model, fmt::format("prompt {}", i));
    const auto limit = static_cast<size_t>(config.data.input_truncated_len);
    if (!prompts[i].ids && limit > 0 && ids.size() > limit) ids.resize(limit);
    prompt_ids.push_back(ids);
    requests.push_back(make_request(config, model, std::move(ids), arguments.ignore_eos));
  }

  AnswerPrinter printer(tokenizer_or_null, prompts.size());
  const LaunchResult result = run_launch(
      config, model, std::move(requests), 0,
      {.on_tokens = [&](int index, std::span<const int32_t> tokens,
                        actors::FinishReason reason) { printer.on_tokens(index, tokens, reason); },
       .on_observed = {}});
  spdlog::info("{}", metrics_text(config.parallel.world_size, result));

  if (arguments.json.empty()) return;
  nlohmann::json outputs = nlohmann::json::array();
  for (size_t i = 0; i < prompts.size(); ++i)
    outputs.push_back(
        output_json(prompts[i], prompt_ids[i], result.completions[i], tokenizer_or_null));
  write_json_file(arguments.json, {{"outputs", std::move(outputs)},
                                   {"metrics", metrics_json(config.parallel.world_size, result)}});
}

}  // namespace troupe::launcher
