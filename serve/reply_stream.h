// serve/reply_stream.h: what the tokens of an answer say: a model's reasoning, and its reply.
//
// Models that reason mark it with tokens of their own. DeepSeek-R1, Kimi and Qwen3: <think> ...
// </think>, which the chat template may have opened already. GPT-OSS (harmony): messages on
// channels, <|channel|>analysis<|message|>...<|end|>, of which "final" is the reply.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/text_stream.h"
#include "model/tokenizer.h"

namespace troupe::serve {

struct ReplyFormat {
  enum class Kind { kPlain, kThink, kHarmony };
  Kind kind = Kind::kPlain;
  int32_t think = -1, end_think = -1;
  int32_t channel = -1, message = -1, start = -1, end = -1;

  // By the marks that the vocabulary has.
  static ReplyFormat of(const model::Tokenizer& tokenizer);
};

struct ReplyPart {
  std::string reasoning, content;
  bool empty() const { return reasoning.empty() && content.empty(); }
};

class ReplyStream {
 public:
  // `in_reasoning`: the prompt ends inside it. `tokenizer` and `format` must outlive this.
  ReplyStream(const model::Tokenizer& tokenizer, const ReplyFormat& format,
              std::vector<std::string> stops, bool in_reasoning);

  // Adds to `part` what may be shown after this token. Stop strings end both kinds of text; none
  // reaches over a mark.
  void push(int32_t id, ReplyPart& part);
  void finish(ReplyPart& part);  // what was held back
  bool stopped() const { return stopped_; }
  bool holding() const { return text_.holding(); }

 private:
  enum class Place { kReasoning, kContent, kChannelName, kBetween };
  bool take_mark(int32_t id, ReplyPart& part);
  void go_to(Place place, ReplyPart& part);
  void show(const std::string& text, ReplyPart& part) const;

  const model::Tokenizer& tokenizer_;
  const ReplyFormat& format_;
  std::vector<std::string> stops_;
  model::TextStream text_;
  Place place_;
  bool anything_ = false;  // but for marks
  bool stopped_ = false;
  std::string channel_;
};

}  // namespace troupe::serve
