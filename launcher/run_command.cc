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
#include "model/text_stream.h"

namespace troupe::launcher {

namespace {

using model::TextStream;
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

// Ends the request after a token that completes one of `stops`.
void stop_at_text(actors::Request& request, const Tokenizer& tokenizer,
                  const std::vector<std::string>& stops) {
  const auto text = std::make_shared<TextStream>(tokenizer, stops);
  request.stops_after = [text](int32_t token) {
    text->push(token);
    return text->stopped();
  };
}

void require_stops(const std::vector<std::string>& stops, const Tokenizer* tokenizer) {
  for (const std::string& stop : stops)
    if (stop.empty()) throw_user_error("--stop: the text must not be empty");
  if (!stops.empty() && tokenizer == nullptr)
    throw_user_error("--stop: the model directory has no tokenizer.json");
}

// Writes answers to stdout: a single one as it comes, several whole and in order, with an empty
// line between them.
class AnswerPrinter {
 public:
  AnswerPrinter(const Tokenizer* tokenizer, const std::vector<std::string>& stops, size_t answers)
      : answers_(answers) {
    for (Answer& answer : answers_)
      if (tokenizer != nullptr) answer.decoder.emplace(*tokenizer, stops);
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
    std::optional<TextStream> decoder;
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

std::string text_of(const std::vector<int32_t>& tokens, const Tokenizer* tokenizer,
                    const std::vector<std::string>& stops) {
  if (tokenizer == nullptr) return "";
  TextStream stream(*tokenizer, stops);
  std::string text;
  for (const int32_t token : tokens) text += stream.push(token);
  return text + stream.finish();
}

nlohmann::json output_json(const Prompt& prompt, const std::vector<int32_t>& prompt_ids, int choice,
                           const actors::Completion& completion, const std::string& text) {
  const bool stopped = completion.reason == actors::FinishReason::kStop;
  return {{"prompt", prompt.text},
          {"prompt_ids", prompt_ids},
          {"choice", choice},
          {"output_ids", completion.tokens},
          {"text", text},
          {"finish_reason", stopped ? "stop" : "length"},
          {"mtp", {{"drafted", completion.drafted}, {"accepted", completion.accepted}}}};
}

}  // namespace

void run_command(const RunArguments& arguments) {
  const Config config = read_config(arguments.config);
  for (const std::string& note : config.notes) spdlog::info("{}", note);
  require_runnable(config);
  if (!arguments.json.empty()) require_output_path(arguments.json);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const auto tokenizer = find_tokenizer(config.model.model_path);
  const Tokenizer* tokenizer_or_null = tokenizer ? &*tokenizer : nullptr;

  require_stops(arguments.stops, tokenizer_or_null);

  std::vector<Prompt> prompts = collect_prompts(arguments, config);
  if (arguments.chat)
    apply_chat_template(prompts, tokenizer_or_null, config, arguments.chat_template);
  std::vector<std::vector<int32_t>> prompt_ids;
  std::vector<actors::Request> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto ids = prompt_tokens(prompts[i], tokenizer_or_null, model, fmt::format("prompt {}", i));
    const auto limit = static_cast<size_t>(config.data.input_truncated_len);
    if (!prompts[i].ids && limit > 0 && ids.size() > limit) ids.resize(limit);
    for (int choice = 0; choice < arguments.n; ++choice) {
      requests.push_back(make_request(config, model, ids, arguments.ignore_eos));
      requests.back().choice = choice;
      if (!arguments.stops.empty()) stop_at_text(requests.back(), *tokenizer, arguments.stops);
    }
    prompt_ids.push_back(std::move(ids));
  }

  AnswerPrinter printer(tokenizer_or_null, arguments.stops, requests.size());
  const LaunchResult result = run_launch(
      config, model, std::move(requests), 0,
      {.on_tokens = [&](int index, std::span<const int32_t> tokens,
                        actors::FinishReason reason) { printer.on_tokens(index, tokens, reason); },
       .on_observed = {}});
  spdlog::info("{}", metrics_text(config.parallel.world_size, result));

  if (arguments.json.empty()) return;
  nlohmann::json outputs = nlohmann::json::array();
  for (size_t i = 0; i < result.completions.size(); ++i) {
    const actors::Completion& completion = result.completions[i];
    const size_t prompt = i / arguments.n;
    outputs.push_back(output_json(prompts[prompt], prompt_ids[prompt],
                                  static_cast<int>(i % arguments.n), completion,
                                  text_of(completion.tokens, tokenizer_or_null, arguments.stops)));
  }
  write_json_file(arguments.json, {{"outputs", std::move(outputs)},
                                   {"metrics", metrics_json(config.parallel.world_size, result)}});
}

}  // namespace troupe::launcher
