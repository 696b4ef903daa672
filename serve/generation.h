// serve/generation.h: one request's answers on their way from the engine to its client.
//
// The engine pushes, the client's connection takes. It holds at most what its requests may generate
// (max_new_tokens each, with their log-probabilities), so a client that reads slowly fills its own
// and nothing else.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "actors/request.h"

namespace troupe::serve {

// What is new of one answer.
struct GenerationEvent {
  int answer = 0;  // which of the requests that were submitted together
  std::vector<int32_t> tokens;
  std::vector<actors::TokenLogProbs> log_probs = {};  // of `tokens`, if asked for
  actors::FinishReason reason = actors::FinishReason::kNone;
  int64_t cached_tokens = 0;  // with a reason: of the prompt, found in the prefix cache
};

class Generation {
 public:
  explicit Generation(std::function<void()> wake) : wake_(std::move(wake)) {}

  // Engine.
  void push(GenerationEvent event);
  void fail(const std::string& why);  // no more will come

  // Client. Moves what has come to the end of `events`; the reason if it has failed, else "".
  std::string take(std::vector<GenerationEvent>& events);

 private:
  std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<GenerationEvent> events_;
  std::string failure_;
};

}  // namespace troupe::serve
