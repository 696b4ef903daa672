#include "serve/generation_request.h"

#include <algorithm>
#include <charconv>
#include <random>

#include "base/error.h"
#include "model/json_file.h"
#include "serve/api_error.h"

namespace troupe::serve {

namespace {

constexpr int kDefaultCompletionTokens = 16;  // OpenAI's
constexpr size_t kMaxTools = 128;

[[noreturn]] void refuse(const std::string& param, const std::string& what) {
  throw ApiError(400, fmt::format("'{}' {}", param, what), param);
}

// ---- messages -----------------------------------------------------------------------------------

// Templates know content as one string.
Json joined_text(const Json& parts, const std::string& where) {
  std::string text;
  for (const Json& part : parts) {
    if (!part.is_object() || part.value("type", Json()) != "text" ||
        !part.value("text", Json()).is_string())
      refuse(where, "may have parts of type text only");
    text += part.at("text").get<std::string>();
  }
  return text;
}

// GPT-OSS's template writes arguments as JSON; clients send them written already.
void parse_arguments(Json& calls) {
  if (!calls.is_array()) return;
  for (Json& call : calls) {
    if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
    Json& arguments = call["function"]["arguments"];
    if (arguments.is_string()) arguments = parse_bounded_json(arguments.get<std::string>());
  }
}

Json checked_message(const Json& given, size_t index, bool harmony) {
  const std::string where = fmt::format("messages[{}]", index);
  if (!given.is_object()) refuse(where, "must be an object");
  Json message = given;
  const Json role = message.value("role", Json());
  const auto roles = {"system", "developer", "user", "assistant", "tool"};
  if (!role.is_string() || std::ranges::find(roles, role.get<std::string>()) == roles.end())
    refuse(where + ".role", "must be system, developer, user, assistant or tool");
  if (role == "developer" && !harmony) message["role"] = "system";
  if (harmony && message.contains("tool_calls")) parse_arguments(message["tool_calls"]);
  Json& content = message["content"];
  const bool may_be_null = role == "assistant" && message.contains("tool_calls");
  if (content.is_array()) content = joined_text(content, where + ".content");
  if (!content.is_string() && !(content.is_null() && may_be_null))
    refuse(where + ".content", "must be a string or a list of text parts");
  return message;
}

// What the model is told of; null when it may call nothing.
Json checked_tools(RequestFields& fields, const ServedModel& model) {
  const Json* tools = fields.find("tools");
  fields.allow_only("tool_choice", {Json("auto"), Json("none")});
  fields.allow_only("parallel_tool_calls", {Json(true)});
  const bool none = fields.string("tool_choice", "auto") == "none";
  if (tools == nullptr || tools->empty() || none) return nullptr;
  if (!model.knows_tools)
    refuse("tools", "are nothing that this model's chat template and vocabulary know");
  if (!tools->is_array() || tools->size() > kMaxTools)
    refuse("tools", fmt::format("must be a list of at most {} functions", kMaxTools));
  for (const Json& tool : *tools) {
    const Json function = tool.is_object() ? tool.value("function", Json()) : Json();
    if (!function.is_object() || tool.value("type", Json()) != "function" ||
        !function.value("name", Json()).is_string())
      refuse("tools", "must be of type function, each with a name");
  }
  return *tools;
}
// ---- prompts ------------------------------------------------------------------------------------

std::vector<int32_t> encoded(const std::string& text, const ServedModel& model,
                             const std::string& param, bool add_special) {
  try {
    return model.tokenizer.encode(text, add_special);
  } catch (const UserError& error) {
    refuse(param, fmt::format("cannot be tokenized: {}", error.what()));
  }
}

bool is_ids(const Json& value) {
  return value.is_array() && !value.empty() && !value[0].is_array();
}

std::vector<int32_t> ids_of(const Json& list, const ServedModel& model) {
  std::vector<int32_t> ids;
  for (const Json& id : list)
    ids.push_back(
        static_cast<int32_t>(checked_integer(id, "prompt", 0, model.model.vocab_size - 1)));
  return ids;
}

std::vector<int32_t> one_prompt(const Json& value, const ServedModel& model) {
  if (value.is_string()) return encoded(value.get<std::string>(), model, "prompt", true);
  if (is_ids(value)) return ids_of(value, model);
  refuse("prompt", "must be a text, a list of token ids, or a list of these, none of them empty");
}

// A text, texts, token ids, or lists of token ids.
std::vector<std::vector<int32_t>> completion_prompts(RequestFields& fields,
                                                     const ServedModel& model) {
  const Json* value = fields.find("prompt");
  if (value == nullptr) refuse("prompt", "is missing");
  const bool several =
      value->is_array() && !value->empty() && ((*value)[0].is_string() || (*value)[0].is_array());
  if (!several) return {one_prompt(*value, model)};
  if (value->size() > kMaxAnswers)
    refuse("prompt", fmt::format("has more than {} prompts", kMaxAnswers));
  std::vector<std::vector<int32_t>> prompts;
  for (const Json& prompt : *value) prompts.push_back(one_prompt(prompt, model));
  return prompts;
}

Json template_variables(RequestFields& fields, const ServedModel& model) {
  Json variables = Json::object();
  if (const Json* more = fields.find("chat_template_kwargs")) {
    if (!more->is_object()) refuse("chat_template_kwargs", "must be an object");
    variables = *more;
  }
  if (const Json* effort = fields.find("reasoning_effort")) {
    if (!model.knows_reasoning_effort)
      refuse("reasoning_effort", "is nothing that this model's chat template shows to it");
    variables["reasoning_effort"] = *effort;
  }
  return variables;
}
// ---- settings -----------------------------------------------------------------------------------

uint64_t drawn_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

void read_logit_bias(RequestFields& fields, const ServedModel& model, actors::Request& settings) {
  const Json* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) refuse("logit_bias", "must map token ids to numbers");
  if (bias->size() > kMaxBiases)
    refuse("logit_bias", fmt::format("has more than {} entries", kMaxBiases));
  for (const auto& [key, value] : bias->items()) {
    int32_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || token < 0 ||
        token >= model.model.vocab_size)
      refuse("logit_bias", fmt::format("names '{}', which is no token id from 0 to {}",
                                       model::printable(key), model.model.vocab_size - 1));
    if (!value.is_number() || !(std::abs(value.get<double>()) <= 100))
      refuse("logit_bias", "has a value that is no number from -100 to 100");
    settings.logit_bias.emplace_back(token, value.get<float>());
  }
}

void read_sampling(RequestFields& fields, const ServedModel& model, actors::Request& settings) {
  const launcher::Config::Data& defaults = model.config.data;
  const auto number = [&](const char* name, double min, double max, double fallback) {
    return static_cast<float>(fields.number(name, min, max, fallback));
  };
  settings.temperature = number("temperature", 0, 2, defaults.temperature);
  settings.top_p = number("top_p", 0, 1, defaults.top_p);
  if (settings.top_p <= 0) refuse("top_p", "must be more than 0");
  // -1 is vLLM's word for all of them.
  settings.top_k = static_cast<int32_t>(
      std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX, defaults.top_k)));
  settings.min_p = number("min_p", 0, 1, 0);
  settings.repetition_penalty = number("repetition_penalty", 0.01, 100, 1);
  settings.presence_penalty = number("presence_penalty", -2, 2, 0);
  settings.frequency_penalty = number("frequency_penalty", -2, 2, 0);
  settings.seed = fields.find("seed") == nullptr
                      ? drawn_seed()
                      : static_cast<uint64_t>(fields.integer("seed", INT64_MIN, INT64_MAX, 0));
  read_logit_bias(fields, model, settings);
}

void read_stops(RequestFields& fields, const ServedModel& model, GenerationRequest& request) {
  request.stops = fields.strings("stop");
  if (request.stops.size() > kMaxStops)
    refuse("stop", fmt::format("has more than {} texts", kMaxStops));
  for (const std::string& stop : request.stops)
    if (stop.empty() || stop.size() > kMaxStopBytes)
      refuse("stop", fmt::format("must be texts of 1 to {} bytes", kMaxStopBytes));
  const auto ids = fields.integers("stop_token_ids", 0, model.model.vocab_size - 1);
  request.settings.stop_ids.insert(ids.begin(), ids.end());
  const auto& eos = model.model.eos_token_ids;
  if (!fields.boolean("ignore_eos", false))
    request.settings.stop_ids.insert(eos.begin(), eos.end());
}

void read_log_probs(RequestFields& fields, Endpoint endpoint, actors::Request& settings) {
  if (endpoint == Endpoint::kCompletions) {
    settings.top_log_probs =
        static_cast<int>(fields.integer("logprobs", 0, actors::kMaxTopLogProbs, -1));
    return;
  }
  const bool wanted = fields.boolean("logprobs", false);
  const auto top = fields.integer("top_logprobs", 0, actors::kMaxTopLogProbs, 0);
  if (top > 0 && !wanted) refuse("top_logprobs", "needs \"logprobs\": true");
  if (wanted) settings.top_log_probs = static_cast<int>(top);
}

void read_stream(RequestFields& fields, GenerationRequest& request) {
  request.stream = fields.boolean("stream", false);
  const Json* options = fields.find("stream_options");
  if (options == nullptr) return;
  if (!request.stream) refuse("stream_options", "needs \"stream\": true");
  if (!options->is_object()) refuse("stream_options", "must be an object");
  RequestFields inner(*options);
  request.include_usage = inner.boolean("include_usage", false);
  inner.refuse_others();
}

// Fields that have one meaning here: said so, they change nothing.
void read_fixed(RequestFields& fields, Endpoint endpoint) {
  fields.find("user");  // whom a request is for changes no answer
  if (endpoint == Endpoint::kChat) {
    fields.allow_only("response_format", {Json::object({{"type", "text"}})});
    fields.allow_only("modalities", {Json::array({"text"})});
    fields.allow_only("store", {Json(false)});
  } else {
    fields.allow_only("best_of", {Json(1)});
    fields.allow_only("echo", {Json(false)});
    fields.allow_only("suffix", {Json("")});
  }
}

int64_t asked_tokens(RequestFields& fields, Endpoint endpoint, const ServedModel& model,
                     int64_t most_positions) {
  const auto asked = [&](const char* name, int64_t fallback) {
    return fields.integer(name, 1, INT32_MAX, fallback);
  };
  switch (endpoint) {
    case Endpoint::kChat: {
      const int64_t older_name = asked("max_tokens", most_positions);
      return asked("max_completion_tokens", older_name);
    }
    case Endpoint::kCompletions:
      return asked("max_tokens", kDefaultCompletionTokens);
    case Endpoint::kGenerate:
      return asked("max_tokens", asked("max_new_tokens", model.config.scheduler.max_new_tokens));
  }
  TROUPE_CHECK(false, "endpoint {}", static_cast<int>(endpoint));
}

void read_settings(RequestFields& fields, const ServedModel& model, int64_t most_positions,
                   GenerationRequest& request) {
  read_sampling(fields, model, request.settings);
  read_stops(fields, model, request);
  if (request.endpoint != Endpoint::kGenerate)
    read_log_probs(fields, request.endpoint, request.settings);
  request.n = static_cast<int>(fields.integer("n", 1, kMaxAnswers, 1));
  request.settings.max_new_tokens = static_cast<int>(
      std::min(asked_tokens(fields, request.endpoint, model, most_positions), int64_t{INT32_MAX}));
}

void require_room(const GenerationRequest& request, int64_t most_positions) {
  if (request.prompts.size() * request.n > kMaxAnswers)
    refuse("n", fmt::format("times the number of prompts is more than {}", kMaxAnswers));
  const char* field = request.endpoint == Endpoint::kChat ? "messages" : "prompt";
  for (const auto& prompt : request.prompts) {
    if (prompt.empty()) refuse(field, "has no tokens");
    if (std::ssize(prompt) >= most_positions)
      throw ApiError(400,
                     fmt::format("the prompt has {} tokens; prompt and answer together may have {}",
                                 prompt.size(), most_positions),
                     field, "context_length_exceeded");
  }
}

}  // namespace

ChatPrompt chat_prompt(RequestFields& fields, const ServedModel& model) {
  if (!model.chat) throw ApiError(400, "this model has no chat: " + model.no_chat, "messages");
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty())
    refuse("messages", "must be a list of messages, not empty");
  model::Conversation conversation;
  const bool harmony = model.reply_format.kind == ReplyFormat::Kind::kHarmony;
  for (size_t i = 0; i < messages->size(); ++i)
    conversation.messages.push_back(checked_message((*messages)[i], i, harmony));
  conversation.tools = checked_tools(fields, model);
  conversation.variables = template_variables(fields, model);
  std::string text;
  try {
    text = model.chat->render(conversation);
  } catch (const UserError& error) {
    refuse("messages", fmt::format("do not fit the model's chat template: {}", error.what()));
  }
  const size_t end = text.find_last_not_of(" \n");
  const bool opened = model.reply_format.kind == ReplyFormat::Kind::kThink &&
                      std::string_view(text).substr(0, end + 1).ends_with("<think>");
  return {encoded(text, model, "messages", false),
          {.in_reasoning = opened, .with_tools = !conversation.tools.is_null()}};
}

void require_model(RequestFields& fields, const ServedModel& model) {
  const std::string asked = fields.string("model", model.name);
  if (asked != model.name)
    throw ApiError(404,
                   fmt::format("the model '{}' does not exist; this server has '{}'",
                               model::printable(asked), model.name),
                   "model", "model_not_found");
}

GenerationRequest parse_generation_request(Endpoint endpoint, const std::string& body,
                                           const ServedModel& model, int64_t most_positions) {
  RequestFields fields(body);
  GenerationRequest request{.endpoint = endpoint};
  if (endpoint != Endpoint::kGenerate) require_model(fields, model);
  if (endpoint == Endpoint::kChat) {
    ChatPrompt prompt = chat_prompt(fields, model);
    request.prompts.push_back(std::move(prompt.ids));
    request.reply_start = prompt.reply_start;
  } else {
    request.prompts = completion_prompts(fields, model);
  }
  if (endpoint == Endpoint::kGenerate) {
    const Json* parameters = fields.find("sampling_params");
    RequestFields inner(parameters != nullptr ? *parameters : Json::object());
    read_settings(inner, model, most_positions, request);
    inner.refuse_others();
    if (request.prompts.size() * request.n != 1) refuse("prompt", "must be a single one");
  } else {
    read_settings(fields, model, most_positions, request);
    read_stream(fields, request);
    read_fixed(fields, endpoint);
  }
  fields.refuse_others();
  require_room(request, most_positions);
  return request;
}

}  // namespace troupe::serve
