#include "serve/reply_stream.h"

namespace troupe::serve {

namespace {

constexpr size_t kLongestChannelName = 256;

int32_t token_of(const model::Tokenizer& tokenizer, const char* text) {
  const std::vector<int32_t> ids = tokenizer.encode(text, false);
  return ids.size() == 1 ? ids[0] : -1;
}

}  // namespace

ReplyFormat ReplyFormat::of(const model::Tokenizer& tokenizer) {
  ReplyFormat format;
  format.think = token_of(tokenizer, "<think>");
  format.end_think = token_of(tokenizer, "</think>");
  format.channel = token_of(tokenizer, "<|channel|>");
  format.message = token_of(tokenizer, "<|message|>");
  format.start = token_of(tokenizer, "<|start|>");
  format.end = token_of(tokenizer, "<|end|>");
  if (format.channel >= 0 && format.message >= 0)
    format.kind = Kind::kHarmony;
  else if (format.think >= 0 && format.end_think >= 0)
    format.kind = Kind::kThink;
  return format;
}

ReplyStream::ReplyStream(const model::Tokenizer& tokenizer, const ReplyFormat& format,
                         std::vector<std::string> stops, bool in_reasoning)
    : tokenizer_(tokenizer),
      format_(format),
      stops_(std::move(stops)),
      text_(tokenizer, stops_),
      place_(in_reasoning ? Place::kReasoning : Place::kContent) {}

void ReplyStream::show(const std::string& text, ReplyPart& part) const {
  (place_ == Place::kReasoning ? part.reasoning : part.content) += text;
}

void ReplyStream::go_to(Place place, ReplyPart& part) {
  show(text_.finish(), part);
  text_ = model::TextStream(tokenizer_, stops_);
  place_ = place;
}

bool ReplyStream::take_mark(int32_t id, ReplyPart& part) {
  switch (format_.kind) {
    case ReplyFormat::Kind::kPlain:
      return false;
    case ReplyFormat::Kind::kThink:
      if (id == format_.think && !anything_)
        go_to(Place::kReasoning, part);
      else if (id == format_.end_think && place_ == Place::kReasoning)
        go_to(Place::kContent, part);
      else
        return false;
      return true;
    case ReplyFormat::Kind::kHarmony:
      if (id == format_.channel) {
        go_to(Place::kChannelName, part);
        channel_.clear();
      } else if (id == format_.message) {
        const bool reply = channel_.empty() || channel_.starts_with("final");
        go_to(reply ? Place::kContent : Place::kReasoning, part);
      } else if (id == format_.start || id == format_.end) {
        go_to(Place::kBetween, part);
        channel_.clear();
      } else {
        return false;
      }
      return true;
  }
  return false;
}

void ReplyStream::push(int32_t id, ReplyPart& part) {
  if (stopped_ || take_mark(id, part)) return;
  if (place_ == Place::kBetween) return;  // the role of the next message
  if (place_ == Place::kChannelName) {
    if (channel_.size() < kLongestChannelName) channel_ += tokenizer_.token_bytes(id);
    return;
  }
  anything_ = true;
  show(text_.push(id), part);
  stopped_ = text_.stopped();
}

void ReplyStream::finish(ReplyPart& part) {
  if (!stopped_) show(text_.finish(), part);
}

}  // namespace troupe::serve
