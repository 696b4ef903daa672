// serve/tool_call.h: calls of tools as models write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "model/tokenizer.h"

namespace troupe::serve {

struct ToolCall {
  std::string id;  // the model's own, where it gives one
  std::string name;
  std::string arguments;  // JSON, as the model wrote it: not checked
};

// The marks around a call, tokens of their own:
//
//   DeepSeek-V3, R1    <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
//                      ```json
//                      ARGUMENTS
//                      ```<｜tool▁call▁end｜>
//   DeepSeek-V3.1      <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>
//   Kimi-K2            <|tool_call_begin|>functions.NAME:0
//                      <|tool_call_argument_begin|>ARGUMENTS<|tool_call_end|>
//   Qwen3              <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call>
//
// (GPT-OSS: a message to functions.NAME, see reply_stream.h.)
struct ToolFormat {
  enum class Kind { kNone, kDeepSeek, kKimi, kQwen };
  Kind kind = Kind::kNone;
  int32_t begin = -1, separator = -1, end = -1;
  int32_t section_begin = -1, section_end = -1;  // around all calls

  static ToolFormat of(const model::Tokenizer& tokenizer);
};

// The id of the token that `text` is alone; -1 when it is none.
int32_t token_of(const model::Tokenizer& tokenizer, const char* text);

// From what stands before and after the separator (Qwen3: all of it before). Nothing when it is not
// written as it should be.
std::optional<ToolCall> parse_tool_call(ToolFormat::Kind kind, const std::string& before,
                                        const std::string& after);
// "commentary to=functions.NAME ...", a channel of GPT-OSS: NAME, or "" when it is no call.
std::string called_function(const std::string& channel);

}  // namespace troupe::serve
