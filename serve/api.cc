#include "serve/api.h"

#include <algorithm>

#include "base/error.h"
#include "serve/api_error.h"
#include "serve/generation_answer.h"
#include "serve/generation_request.h"
#include "serve/request_fields.h"
#include "serve/status_page.h"

namespace troupe::serve {

namespace {

constexpr const char* kRetryAfterSeconds = "1";

std::unique_ptr<HttpAnswer> json_answer(const Json& json, int status = 200) {
  return whole_answer({.status = status},
                      json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::unique_ptr<HttpAnswer> error_answer(const ApiError& error) {
  HttpHead head{.status = error.status()};
  if (error.status() == 429 || error.status() == 503)
    head.fields.emplace_back("Retry-After", kRetryAfterSeconds);
  if (error.status() == 401) head.fields.emplace_back("WWW-Authenticate", "Bearer");
  return whole_answer(std::move(head),
                      error_body(error.what(), error.type(), error.param(), error.code()));
}

// Takes as long for a wrong key as for one that is nearly right.
bool same_secret(const std::string& a, const std::string& b) {
  unsigned difference = a.size() != b.size();
  for (size_t i = 0; i < a.size(); ++i)
    difference |= static_cast<unsigned char>(a[i]) ^
                  static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  return difference == 0;
}

// A page of another origin cannot send JSON without asking first, and it is told no.
void require_json(const HttpRequest& request) {
  if (!request.content_type.starts_with("application/json"))
    throw ApiError(415, "the body must be JSON, sent with Content-Type: application/json");
}

void require_method(const HttpRequest& request, const char* method) {
  if (request.method != method)
    throw ApiError(405, fmt::format("{} is asked by {}", request.path, method));
}

const char* state_name(EngineState state) {
  switch (state) {
    case EngineState::kLoading:
      return "loading";
    case EngineState::kReady:
      return "ready";
    case EngineState::kDraining:
      return "draining";
    case EngineState::kFailed:
      return "failed";
  }
  return "";
}

}  // namespace

std::unique_ptr<HttpAnswer> Api::handle(HttpRequest request, Wake wake) const {
  try {
    return route(request, std::move(wake));
  } catch (const ApiError& error) {
    return error_answer(error);
  } catch (const UserError& error) {
    return error_answer(ApiError(400, error.what()));
  }
}

void Api::require_key(const HttpRequest& request) const {
  if (api_key_.empty()) return;
  if (!same_secret(request.authorization, "Bearer " + api_key_))
    throw ApiError(401, "wrong API key: send Authorization: Bearer KEY", "", "invalid_api_key");
}

Api::Answer Api::route(HttpRequest& request, Wake wake) const {
  const std::string& path = request.path;
  if (path == "/health" || path == "/ready" || path == "/live") {
    require_method(request, "GET");
    return health(path);
  }
  if (path == "/") {
    require_method(request, "GET");
    return whole_answer({.content_type = "text/html; charset=utf-8"}, std::string(status_page()));
  }
  require_key(request);
  for (const auto& [name, endpoint] : {std::pair{"/v1/chat/completions", Endpoint::kChat},
                                       std::pair{"/v1/completions", Endpoint::kCompletions},
                                       std::pair{"/generate", Endpoint::kGenerate}})
    if (path == name) return generate(endpoint, request, std::move(wake));
  if (path == "/tokenize") return tokenize(request);
  if (path == "/detokenize") return detokenize(request);
  if (path == "/metrics" || path == "/status" || path == "/v1/models" ||
      path.starts_with("/v1/models/")) {
    require_method(request, "GET");
    if (path == "/status") return status();
    if (path != "/metrics") return models(path);
    return whole_answer({.content_type = "text/plain; version=0.0.4; charset=utf-8"},
                        backend_.metrics().text(model_.name) + backend_.pool_metrics());
  }
  throw ApiError(404, fmt::format("there is no {} {}", request.method, path));
}

Api::Answer Api::generate(Endpoint endpoint, const HttpRequest& request, Wake wake) const {
  require_method(request, "POST");
  require_json(request);
  if (backend_.state() == EngineState::kLoading)
    throw ApiError(503, "the ranks are still loading", "", "loading");
  return std::make_unique<GenerationAnswer>(
      parse_generation_request(endpoint, request.body, model_, backend_.most_positions()), model_,
      backend_, std::move(wake));
}

Api::Answer Api::tokenize(const HttpRequest& request) const {
  require_method(request, "POST");
  require_json(request);
  RequestFields fields(request.body);
  require_model(fields, model_);
  const bool as_chat = fields.find("messages") != nullptr;
  const bool add_special = fields.boolean("add_special_tokens", true);
  const std::string prompt = fields.string("prompt", "");
  if (as_chat == (fields.find("prompt") != nullptr))
    throw ApiError(400, "give either 'prompt' or 'messages'", "prompt");
  std::vector<int32_t> tokens;
  if (as_chat)
    tokens = chat_prompt(fields, model_).ids;
  else
    tokens = model_.tokenizer.encode(prompt, add_special);
  fields.refuse_others();
  return json_answer({{"count", tokens.size()},
                      {"max_model_len", model_.model.max_position_embeddings},
                      {"tokens", tokens}});
}

Api::Answer Api::detokenize(const HttpRequest& request) const {
  require_method(request, "POST");
  require_json(request);
  RequestFields fields(request.body);
  require_model(fields, model_);
  if (fields.find("tokens") == nullptr) throw ApiError(400, "'tokens' is missing", "tokens");
  const auto tokens = fields.integers("tokens", 0, model_.model.vocab_size - 1);
  fields.refuse_others();
  return json_answer({{"prompt", model_.tokenizer.decode(tokens, false)}});
}

Api::Answer Api::models(const std::string& path) const {
  const Json card = {{"id", model_.name},
                     {"object", "model"},
                     {"created", model_.created},
                     {"owned_by", "troupe"},
                     {"max_model_len", model_.model.max_position_embeddings}};
  if (path == "/v1/models") return json_answer({{"object", "list"}, {"data", {card}}});
  if (path != "/v1/models/" + model_.name)
    throw ApiError(404, fmt::format("there is no model but '{}'", model_.name), "model",
                   "model_not_found");
  return json_answer(card);
}

// live: the process answers. health: the ranks are up. ready: they take requests.
Api::Answer Api::health(const std::string& path) const {
  const EngineState state = backend_.state();
  const bool up = state == EngineState::kReady || state == EngineState::kDraining;
  const bool good = path == "/live" || (path == "/health" ? up : state == EngineState::kReady);
  return json_answer({{"status", state_name(state)}}, good ? 200 : 503);
}

Api::Answer Api::status() const {
  const Metrics::Totals totals = backend_.metrics().totals();
  Json ranks = Json::array();
  const std::vector<RankView> views = backend_.ranks();
  for (const auto& [rank, instance, activity, load] : views) {
    ranks.push_back({{"rank", rank},
                     {"instance", instance},
                     {"stage", comm::stage_name(activity.stage)},
                     {"step", activity.step},
                     {"layer", activity.layer},
                     {"operation", comm::operation_name(activity.operation)},
                     {"waiting_for", activity.waiting_for},
                     {"running", load.running},
                     {"kv_blocks_in_use", load.blocks_in_use},
                     {"kv_blocks", load.blocks}});
  }
  return json_answer({{"state", state_name(backend_.state())},
                      {"model", model_.name},
                      {"world_size", backend_.world_size()},
                      {"running", totals.now.running},
                      {"waiting", totals.now.waiting},
                      {"requests", totals.requests},
                      {"generation_tokens", totals.generation_tokens},
                      {"prefill_tokens", totals.steps.prefill_tokens},
                      {"admitted_tokens", totals.steps.admitted_tokens},
                      {"reused_tokens", totals.steps.reused_tokens},
                      {"preemptions", totals.steps.preemptions},
                      {"drafted_at", totals.steps.drafted_at},
                      {"accepted_at", totals.steps.accepted_at},
                      {"kv_blocks_in_use", totals.now.blocks_in_use},
                      {"kv_blocks", totals.now.blocks},
                      {"chat", model_.chat.has_value()},
                      {"pools", backend_.pools()},
                      {"ranks", std::move(ranks)}});
}

}  // namespace troupe::serve
