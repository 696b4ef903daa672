#include "serve/reply_stream.h"

namespace troupe::serve {

namespace {

constexpr size_t kLongestChannelName = 256;

}  // namespace

ReplyFormat ReplyFormat::of(const model::Tokenizer& tokenizer) {
  ReplyFormat format;
  format.think = token_of(tokenizer, "<think>");
  format.end_think = token_of(tokenizer, "</think>");
  format.channel = token_of(tokenizer, "<|channel|>");
  format.message = token_of(tokenizer, "<|message|>");
  format.start = token_of(tokenizer, "<|start|>");
  format.end = token_of(tokenizer, "<|end|>");
  format.call = token_of(tokenizer, "<|call|>");
  format.tools = ToolFormat::of(tokenizer);
  if (format.channel >= 0 && format.message >= 0)
    format.kind = Kind::kHarmony;
  else if (format.think >= 0 && format.end_think >= 0)
    format.kind = Kind::kThink;
  return format;
}

ReplyStream::ReplyStream(const model::Tokenizer& tokenizer, const ReplyFormat& format,
                         std::vector<std::string> stops, ReplyStart start)
    : tokenizer_(tokenizer),
      format_(format),
      stops_(std::move(stops)),
      text_(tokenizer, stops_),
      with_tools_(start.with_tools),
      place_(start.in_reasoning ? Place::kReasoning : Place::kContent) {}

void ReplyStream::show(const std::string& text, ReplyPart& part) const {
  (place_ == Place::kReasoning ? part.reasoning : part.content) += text;
}

void ReplyStream::go_to(Place place, ReplyPart& part) {
  show(text_.finish(), part);
  text_ = model::TextStream(tokenizer_, stops_);
  place_ = place;
}

bool ReplyStream::take_mark(int32_t id, ReplyPart& part) {
  if (with_tools_ && take_tool_mark(id, part)) return true;
  switch (format_.kind) {
    case ReplyFormat::Kind::kPlain:
      return false;
    case ReplyFormat::Kind::kThink:
      return take_think_mark(id, part);
    case ReplyFormat::Kind::kHarmony:
      return take_harmony_mark(id, part);
  }
  return false;
}

bool ReplyStream::take_think_mark(int32_t id, ReplyPart& part) {
  if (id == format_.think && !anything_)
    go_to(Place::kReasoning, part);
  else if (id == format_.end_think && place_ == Place::kReasoning)
    go_to(Place::kContent, part);
  else
    return false;
  return true;
}

bool ReplyStream::take_harmony_mark(int32_t id, ReplyPart& part) {
  if (id == format_.channel) {
    go_to(Place::kChannelName, part);
    channel_.clear();
  } else if (id == format_.message) {
    call_ = with_tools_ ? called_function(channel_) : "";
    arguments_.clear();
    const bool reply = channel_.empty() || channel_.starts_with("final");
    go_to(!call_.empty() ? Place::kArguments : reply ? Place::kContent : Place::kReasoning, part);
  } else if (id == format_.start || id == format_.end || id == format_.call) {
    if (place_ == Place::kArguments) end_call(true, part);
    go_to(Place::kBetween, part);
    channel_.clear();
  } else {
    return false;
  }
  return true;
}

bool ReplyStream::take_tool_mark(int32_t id, ReplyPart& part) {
  const ToolFormat& tools = format_.tools;
  if (tools.kind == ToolFormat::Kind::kNone || id < 0) return false;
  const bool in_call = place_ == Place::kCall || place_ == Place::kArguments;
  if (id == tools.begin && !in_call) {
    go_to(Place::kCall, part);
    call_.clear();
    arguments_.clear();
  } else if (id == tools.separator && place_ == Place::kCall) {
    place_ = Place::kArguments;
  } else if (id == tools.end && in_call) {
    end_call(true, part);
  } else if (id == tools.section_begin || id == tools.section_end) {
    go_to(Place::kContent, part);
  } else {
    return false;
  }
  return true;
}

// One that the answer's end has cut is shown as the text it is.
void ReplyStream::end_call(bool whole, ReplyPart& part) {
  std::optional<ToolCall> call;
  if (whole && format_.kind == ReplyFormat::Kind::kHarmony)
    call = ToolCall{"", call_, arguments_};
  else if (whole)
    call = parse_tool_call(format_.tools.kind, call_, arguments_);
  place_ = Place::kContent;
  if (call)
    part.tool_calls.push_back(std::move(*call));
  else
    part.content += call_ + arguments_;
}

void ReplyStream::push(int32_t id, ReplyPart& part) {
  if (stopped_ || take_mark(id, part)) return;
  switch (place_) {
    case Place::kBetween:  // the role of the next message
      return;
    case Place::kChannelName:
      if (channel_.size() < kLongestChannelName) channel_ += tokenizer_.token_bytes(id);
      return;
    case Place::kCall:
      call_ += tokenizer_.token_bytes(id);
      return;
    case Place::kArguments:
      arguments_ += tokenizer_.is_special(id) ? "" : tokenizer_.token_bytes(id);
      return;
    case Place::kReasoning:
    case Place::kContent:
      break;
  }
  anything_ = true;
  show(text_.push(id), part);
  stopped_ = text_.stopped();
}

void ReplyStream::finish(ReplyPart& part) {
  if (stopped_) return;
  if (place_ == Place::kCall || place_ == Place::kArguments) end_call(false, part);
  show(text_.finish(), part);
}

}  // namespace troupe::serve
