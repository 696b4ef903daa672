// serve/response_format.h: answers as the JSON of an endpoint, whole or as the events of a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "actors/request.h"
#include "serve/generation_request.h"
#include "serve/reply_stream.h"
#include "serve/served_model.h"

namespace troupe::serve {

// Of one answer: all of it, or what is new of it.
struct AnswerPart {
  ReplyPart text;
  std::vector<int32_t> tokens;
  std::vector<std::pair<int32_t, actors::TokenLogProbs>> log_probs;  // of shown tokens
  int64_t first_offset = 0;             // characters of the tokens before these
  int64_t first_call = 0;               // of text.tool_calls: calls before these
  const char* finish_reason = nullptr;  // "stop", "length", "tool_calls"; null while it goes on
};

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
};

class ResponseFormat {
 public:
  virtual ~ResponseFormat() = default;
  // The data of an event. opening() may be "": no event.
  virtual std::string opening(int answer) const = 0;
  virtual std::string part(int answer, const AnswerPart& part) const = 0;
  virtual std::string usage(const Usage& usage) const = 0;
  virtual std::string whole(const std::vector<AnswerPart>& answers, const Usage& usage) const = 0;
};

std::unique_ptr<ResponseFormat> response_format(const GenerationRequest& request,
                                                const ServedModel& model);

// Of UTF-8, or a piece of it.
int64_t characters(std::string_view bytes);

// `text` as a JSON string, with quotes. What is no UTF-8 becomes U+FFFD.
std::string json_string(const std::string& text);

}  // namespace troupe::serve
