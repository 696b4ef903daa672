// serve/reply_stream.h: what the tokens of an answer say: a model's reasoning, its reply, its calls
// of tools.
//
// Models that reason mark it with tokens of their own. DeepSeek-R1, Kimi and Qwen3: <think> ...
// </think>, which the chat template may have opened already. GPT-OSS (harmony): messages on
// channels, <|channel|>analysis<|message|>...<|end|>, of which "final" is the reply, and one to
// functions.NAME calls a tool.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/text_stream.h"
#include "model/tokenizer.h"
#include "serve/tool_call.h"

namespace troupe::serve {

struct ReplyFormat {
  enum class Kind { kPlain, kThink, kHarmony };
  Kind kind = Kind::kPlain;
  int32_t think = -1, end_think = -1;
  int32_t channel = -1, message = -1, start = -1, end = -1, call = -1;
  ToolFormat tools;
  bool knows_tools() const {
    return kind == Kind::kHarmony || tools.kind != ToolFormat::Kind::kNone;
  }

  // By the marks that the vocabulary has.
  static ReplyFormat of(const model::Tokenizer& tokenizer);
};

struct ReplyPart {
  std::string reasoning, content;
  std::vector<ToolCall> tool_calls;  // whole ones
  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }
};

struct ReplyStart {
  bool in_reasoning = false;  // the prompt ends inside it
  bool with_tools = false;    // the model has been told of some: what it writes as a call is one
};

class ReplyStream {
 public:
  // `tokenizer` and `format` must outlive this.
  ReplyStream(const model::Tokenizer& tokenizer, const ReplyFormat& format,
              std::vector<std::string> stops, ReplyStart start);

  // Adds to `part` what may be shown after this token. Stop strings end reasoning and content; none
  // reaches over a mark. A call is shown when it is whole; one that is not written as it should be
  // is content.
  void push(int32_t id, ReplyPart& part);
  void finish(ReplyPart& part);  // what was held back
  bool stopped() const { return stopped_; }
  bool holding() const { return text_.holding(); }

 private:
  enum class Place { kReasoning, kContent, kChannelName, kBetween, kCall, kArguments };
  bool take_mark(int32_t id, ReplyPart& part);
  bool take_think_mark(int32_t id, ReplyPart& part);
  bool take_harmony_mark(int32_t id, ReplyPart& part);
  bool take_tool_mark(int32_t id, ReplyPart& part);
  void end_call(bool whole, ReplyPart& part);
  void go_to(Place place, ReplyPart& part);
  void show(const std::string& text, ReplyPart& part) const;

  const model::Tokenizer& tokenizer_;
  const ReplyFormat& format_;
  std::vector<std::string> stops_;
  model::TextStream text_;
  const bool with_tools_;
  Place place_;
  bool anything_ = false;  // but for marks
  bool stopped_ = false;
  std::string channel_;
  std::string call_, arguments_;  // before and after a call's separator
};

}  // namespace troupe::serve
