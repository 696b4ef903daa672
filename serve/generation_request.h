// serve/generation_request.h: from the JSON of a request to what the engine is asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "actors/request.h"
#include "serve/request_fields.h"
#include "serve/served_model.h"

namespace troupe::serve {

enum class Endpoint { kChat, kCompletions, kGenerate };

struct GenerationRequest {
  Endpoint endpoint = Endpoint::kChat;
  std::vector<std::vector<int32_t>> prompts = {};
  int n = 1;                            // answers to each
  actors::Request settings = {};        // of all; without prompt and choice
  std::vector<std::string> stops = {};  // texts
  ReplyStart reply_start = {};
  bool stream = false;
  bool include_usage = false;  // in a stream
};

inline constexpr int kMaxAnswers = 128;  // prompts times n, of one request
inline constexpr int kMaxStops = 16;
inline constexpr int kMaxStopBytes = 1024;  // of one
inline constexpr int kMaxBiases = 1024;

// Reads and checks everything; ApiError names the field. What a client does not say comes from the
// configuration: temperature, top_p and top_k from data_config. Without `seed` one is drawn.
// Prompts have at most `most_positions` - 1 tokens, and as many new ones as then have room unless
// the request says fewer (completions: 16, generate: scheduler_config.max_new_tokens).
GenerationRequest parse_generation_request(Endpoint endpoint, const std::string& body,
                                           const ServedModel& model, int64_t most_positions);

struct ChatPrompt {
  std::vector<int32_t> ids;
  ReplyStart reply_start;
};
// The messages of a chat as token ids; also of /tokenize. Takes the fields messages, tools,
// tool_choice, chat_template_kwargs and reasoning_effort.
ChatPrompt chat_prompt(RequestFields& fields, const ServedModel& model);

// Status 404 unless the field `model` is missing or names the model.
void require_model(RequestFields& fields, const ServedModel& model);

}  // namespace troupe::serve
