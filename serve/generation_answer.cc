#include "serve/generation_answer.h"

#include <iterator>

#include "serve/api_error.h"

namespace troupe::serve {

namespace {

using actors::FinishReason;

std::string event(const std::string& data) { return data.empty() ? "" : "data: " + data + "\n\n"; }

[[noreturn]] void refuse(Refusal refusal) {
  switch (refusal) {
    case Refusal::kLoading:
      throw ApiError(503, "the ranks are still loading", "", "loading");
    case Refusal::kDraining:
      throw ApiError(503, "the server is shutting down", "", "draining");
    case Refusal::kFailed:
      throw ApiError(503, "a rank has failed", "", "failed");
    case Refusal::kNone:
    case Refusal::kQueueFull:
      break;
  }
  throw ApiError(429, "too many requests are waiting; try again later", "", "queue_full");
}

}  // namespace

GenerationAnswer::GenerationAnswer(GenerationRequest request, const ServedModel& model,
                                   Backend& backend, Wake wake)
    : request_(std::move(request)),
      model_(model),
      backend_(backend),
      format_(response_format(request_, model)) {
  static const ReplyFormat kPlain;
  const ReplyFormat& reply = request_.endpoint == Endpoint::kChat ? model.reply_format : kPlain;
  for (size_t i = 0; i < request_.prompts.size() * request_.n; ++i)
    choices_.push_back(
        {.stream = ReplyStream(model.tokenizer, reply, request_.stops, request_.reply_start)});
  open_ = choices_.size();
  for (const auto& prompt : request_.prompts) usage_.prompt_tokens += std::ssize(prompt);
  Refusal refusal{};
  generation_ = backend.submit(engine_requests(), std::move(wake), refusal);
  if (generation_ == nullptr) refuse(refusal);
}

GenerationAnswer::~GenerationAnswer() {
  if (generation_ != nullptr && open_ > 0) backend_.cancel(generation_);
}

std::vector<actors::Request> GenerationAnswer::engine_requests() const {
  std::vector<actors::Request> requests;
  for (size_t i = 0; i < choices_.size(); ++i) {
    actors::Request& one = requests.emplace_back(request_.settings);
    one.prompt = request_.prompts[i / request_.n];
    one.choice = static_cast<uint32_t>(i % request_.n);
    const int64_t room = backend_.most_positions() - std::ssize(one.prompt);
    one.max_new_tokens = static_cast<int>(std::min<int64_t>(one.max_new_tokens, room));
    if (request_.stops.empty()) continue;
    // The engine reads along, so that it ends where the text does.
    const auto text = std::make_shared<ReplyStream>(choices_[i].stream);
    one.stops_after = [text](int32_t token) {
      ReplyPart unused;
      text->push(token, unused);
      return text->stopped();
    };
  }
  return requests;
}

HttpHead GenerationAnswer::head() const {
  if (!failure_.empty() && !told_) return {.status = 500};
  if (!request_.stream) return {};
  return {.status = 200,
          .content_type = "text/event-stream; charset=utf-8",
          .streamed = true,
          .fields = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}};
}

HttpAnswer::State GenerationAnswer::take(std::string& body) {
  events_.clear();
  failure_ = generation_->take(events_);
  for (const GenerationEvent& one : events_) apply(one);
  if (request_.stream && !events_.empty()) tell_parts(body);
  if (open_ > 0 && failure_.empty()) return State::kMore;
  if (open_ > 0)
    body += request_.stream && told_ ? event(error_body(failure_, "server_error"))
                                     : error_body(failure_, "server_error");
  else
    tell_end(body);
  return State::kDone;
}

void GenerationAnswer::apply(const GenerationEvent& event) {
  Choice& choice = choices_[event.answer];
  for (const int32_t token : event.tokens) choice.stream.push(token, choice.so_far.text);
  choice.so_far.tokens.insert(choice.so_far.tokens.end(), event.tokens.begin(), event.tokens.end());
  usage_.completion_tokens += std::ssize(event.tokens);
  if (event.reason != FinishReason::kNone) {
    choice.stream.finish(choice.so_far.text);
    const bool calls = choice.calls_told > 0 || !choice.so_far.text.tool_calls.empty();
    choice.so_far.finish_reason = event.reason != FinishReason::kStop ? "length"
                                  : calls                             ? "tool_calls"
                                                                      : "stop";
    choice.ended = true;
    --open_;
    // Answers to one prompt have its tokens in common; counted once, as the prompt is.
    if (event.answer % request_.n == 0) usage_.cached_tokens += event.cached_tokens;
  }
  show_log_probs(choice, event);
}

// A token is told of when its text is; those of a stop string, or that end the answer, are not.
void GenerationAnswer::show_log_probs(Choice& choice, const GenerationEvent& event) {
  for (size_t i = 0; i < event.log_probs.size(); ++i)
    choice.held.emplace_back(event.tokens[i], event.log_probs[i]);
  if (choice.stream.stopped()) return choice.held.clear();
  const bool stopped = event.reason == FinishReason::kStop;
  if (stopped && !choice.held.empty()) choice.held.pop_back();
  if (choice.stream.holding() && !choice.ended) return;
  AnswerPart& part = choice.so_far;
  if (part.log_probs.empty()) part.first_offset = choice.offset;
  for (const auto& [token, values] : choice.held)
    choice.offset += characters(model_.tokenizer.token_bytes(token));
  part.log_probs.insert(part.log_probs.end(), std::make_move_iterator(choice.held.begin()),
                        std::make_move_iterator(choice.held.end()));
  choice.held.clear();
}

void GenerationAnswer::tell_parts(std::string& body) {
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    const AnswerPart& part = choice.so_far;
    const bool silent = part.text.empty() && part.log_probs.empty();
    if (part.tokens.empty() && part.finish_reason == nullptr) continue;
    const int index = static_cast<int>(i);
    if (!choice.opened) body += event(format_->opening(index));
    choice.opened = told_ = true;
    if (silent && part.finish_reason == nullptr) continue;
    body += event(format_->part(index, part));
    choice.calls_told += std::ssize(part.text.tool_calls);
    choice.so_far = {};
    choice.so_far.first_call = choice.calls_told;
  }
}

void GenerationAnswer::tell_end(std::string& body) {
  if (!request_.stream) {
    std::vector<AnswerPart> answers;
    for (Choice& choice : choices_) answers.push_back(std::move(choice.so_far));
    body += format_->whole(answers, usage_);
    return;
  }
  if (request_.include_usage) body += event(format_->usage(usage_));
  body += event("[DONE]");
}

}  // namespace troupe::serve
