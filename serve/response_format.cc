#include "serve/response_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "base/error.h"
#include "serve/request_fields.h"

namespace troupe::serve {

namespace {

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// 128 random bits, as every request needs a name of its own.
std::string drawn_id(const char* prefix) {
  std::random_device device;
  return fmt::format("{}{:08x}{:08x}{:08x}{:08x}", prefix, device(), device(), device(), device());
}

double finite(float log_prob) { return std::max(-9999.0, static_cast<double>(log_prob)); }

Json usage_json(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json finish_json(const AnswerPart& part) {
  return part.finish_reason == nullptr ? Json() : Json(part.finish_reason);
}

// What the forms of /v1 share: id, object, created, model, choices, usage.
class OpenAiFormat : public ResponseFormat {
 public:
  OpenAiFormat(const GenerationRequest& request, const ServedModel& model, const char* id_prefix,
               const char* object, const char* stream_object)
      : model_(model), with_log_probs_(request.settings.top_log_probs >= 0) {
    const Json head = {{"id", drawn_id(id_prefix)},
                       {"object", request.stream ? stream_object : object},
                       {"created", std::time(nullptr)},
                       {"model", model.name}};
    head_ = dump(head);
    head_.pop_back();  // the object stays open: this is written once, not for every token
    if (request.include_usage) no_usage_ = ",\"usage\":null";
  }

  std::string usage(const Usage& usage) const override {
    return fmt::format("{},\"choices\":[],\"usage\":{}}}", head_, dump(usage_json(usage)));
  }
  std::string whole(const std::vector<AnswerPart>& answers, const Usage& usage) const override {
    Json choices = Json::array();
    for (size_t i = 0; i < answers.size(); ++i) choices.push_back(choice(i, answers[i]));
    return fmt::format("{},\"choices\":{},\"usage\":{}}}", head_, dump(choices),
                       dump(usage_json(usage)));
  }

 protected:
  virtual Json choice(size_t index, const AnswerPart& answer) const = 0;
  // The text of a token alone; bytes of an unfinished character become U+FFFD.
  std::string token_text(int32_t token) const {
    return model_.tokenizer.decode(std::vector<int32_t>{token}, false);
  }
  // An event with one choice, whose fields besides the index are JSON already.
  std::string event(int answer, const std::string& fields, const AnswerPart& part) const {
    return fmt::format("{},\"choices\":[{{\"index\":{},{},\"finish_reason\":{}}}]{}}}", head_,
                       answer, fields, dump(finish_json(part)), no_usage_);
  }

  const ServedModel& model_;
  const bool with_log_probs_;

 private:
  std::string head_, no_usage_;
};

class ChatFormat final : public OpenAiFormat {
 public:
  ChatFormat(const GenerationRequest& request, const ServedModel& model)
      : OpenAiFormat(request, model, "chatcmpl-", "chat.completion", "chat.completion.chunk") {}

  std::string opening(int answer) const override {
    return event(answer, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null",
                 {});
  }
  std::string part(int answer, const AnswerPart& part) const override {
    std::string delta;
    if (!part.text.reasoning.empty())
      delta = "\"reasoning_content\":" + json_string(part.text.reasoning);
    if (!part.text.content.empty())
      delta += (delta.empty() ? "" : ",") + ("\"content\":" + json_string(part.text.content));
    if (!part.text.tool_calls.empty())
      delta += (delta.empty() ? "" : ",") + ("\"tool_calls\":" + dump(calls_json(part, true)));
    return event(answer, fmt::format("\"delta\":{{{}}},\"logprobs\":{}", delta, log_probs(part)),
                 part);
  }

 private:
  Json choice(size_t index, const AnswerPart& answer) const override {
    Json message = {{"role", "assistant"}, {"content", answer.text.content}};
    if (!answer.text.reasoning.empty()) message["reasoning_content"] = answer.text.reasoning;
    if (!answer.text.tool_calls.empty()) {
      message["tool_calls"] = calls_json(answer, false);
      if (answer.text.content.empty()) message["content"] = nullptr;
    }
    message["refusal"] = nullptr;
    return {{"index", index},
            {"message", std::move(message)},
            {"logprobs", Json::parse(log_probs(answer))},
            {"finish_reason", finish_json(answer)}};
  }
  static Json calls_json(const AnswerPart& part, bool with_index) {
    Json calls = Json::array();
    int64_t index = part.first_call;
    for (const ToolCall& call : part.text.tool_calls) {
      Json& one = calls.emplace_back(Json::object());
      if (with_index) one["index"] = index++;
      one["id"] = call.id.empty() ? drawn_id("call_") : call.id;
      one["type"] = "function";
      one["function"] = {{"name", call.name}, {"arguments", call.arguments}};
    }
    return calls;
  }
  std::string log_probs(const AnswerPart& part) const {
    if (!with_log_probs_) return "null";
    Json content = Json::array();
    for (const auto& [token, values] : part.log_probs) {
      Json entry = entry_of(token, values.chosen);
      entry["top_logprobs"] = Json::array();
      for (const auto& [other, log_prob] : values.top)
        entry["top_logprobs"].push_back(entry_of(other, log_prob));
      content.push_back(std::move(entry));
    }
    return dump({{"content", std::move(content)}, {"refusal", nullptr}});
  }
  Json entry_of(int32_t token, float log_prob) const {
    Json bytes = Json::array();
    for (const char c : model_.tokenizer.token_bytes(token))
      bytes.push_back(static_cast<unsigned char>(c));
    return {{"token", token_text(token)}, {"logprob", finite(log_prob)}, {"bytes", bytes}};
  }
};

class CompletionFormat final : public OpenAiFormat {
 public:
  CompletionFormat(const GenerationRequest& request, const ServedModel& model)
      : OpenAiFormat(request, model, "cmpl-", "text_completion", "text_completion") {}

  std::string opening(int) const override { return ""; }
  std::string part(int answer, const AnswerPart& part) const override {
    return event(answer,
                 fmt::format("\"text\":{},\"logprobs\":{}", json_string(part.text.content),
                             dump(log_probs(part))),
                 part);
  }

 private:
  Json choice(size_t index, const AnswerPart& answer) const override {
    return {{"index", index},
            {"text", answer.text.content},
            {"logprobs", log_probs(answer)},
            {"finish_reason", finish_json(answer)}};
  }
  Json log_probs(const AnswerPart& part) const {
    if (!with_log_probs_) return nullptr;
    Json tokens = Json::array(), values = Json::array(), tops = Json::array(),
         offsets = Json::array();
    int64_t offset = part.first_offset;
    for (const auto& [token, log_prob] : part.log_probs) {
      const std::string text = token_text(token);
      tokens.push_back(text);
      values.push_back(finite(log_prob.chosen));
      offsets.push_back(offset);
      offset += characters(model_.tokenizer.token_bytes(token));
      Json top = Json::object();
      for (const auto& [other, value] : log_prob.top) top.emplace(token_text(other), finite(value));
      if (!log_prob.top.empty()) top.emplace(text, finite(log_prob.chosen));  // always told
      tops.push_back(std::move(top));
    }
    return {{"tokens", std::move(tokens)},
            {"token_logprobs", std::move(values)},
            {"top_logprobs", std::move(tops)},
            {"text_offset", std::move(offsets)}};
  }
};

// The form of cann-recipes-infer's server.
class GenerateFormat final : public ResponseFormat {
 public:
  std::string opening(int) const override { return ""; }
  std::string part(int, const AnswerPart&) const override { return ""; }
  std::string usage(const Usage&) const override { return ""; }
  std::string whole(const std::vector<AnswerPart>& answers, const Usage& usage) const override {
    const AnswerPart& answer = answers.at(0);
    return dump({{"status", "success"},
                 {"result",
                  {{"output", answer.text.content},
                   {"output_ids", answer.tokens},
                   {"finish_reason", finish_json(answer)},
                   {"prompt_tokens", usage.prompt_tokens},
                   {"completion_tokens", usage.completion_tokens}}}});
  }
};

}  // namespace

std::unique_ptr<ResponseFormat> response_format(const GenerationRequest& request,
                                                const ServedModel& model) {
  switch (request.endpoint) {
    case Endpoint::kChat:
      return std::make_unique<ChatFormat>(request, model);
    case Endpoint::kCompletions:
      return std::make_unique<CompletionFormat>(request, model);
    case Endpoint::kGenerate:
      return std::make_unique<GenerateFormat>();
  }
  TROUPE_CHECK(false, "endpoint {}", static_cast<int>(request.endpoint));
}

int64_t characters(std::string_view bytes) {
  return std::ranges::count_if(bytes, [](char c) { return (c & 0xc0) != 0x80; });
}

std::string json_string(const std::string& text) { return dump(text); }

}  // namespace troupe::serve
