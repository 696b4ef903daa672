// actors/request.h: what is asked of the scheduler, and what becomes of it.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <utility>
#include <vector>

namespace troupe::actors {

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int max_new_tokens = 0;       // 0: only score the prompt
  std::set<int32_t> stop_ids;   // generation ends after one of these
  // Hears each new token once, in order; true ends the generation after it (stop strings).
  std::function<bool(int32_t token)> stops_after = {};

  float temperature = 0;  // 0: greedy
  float top_p = 1;
  int32_t top_k = 0;
  float min_p = 0;
  float repetition_penalty = 1;                       // of tokens of prompt and answer
  float presence_penalty = 0, frequency_penalty = 0;  // of tokens of the answer
  std::vector<std::pair<int32_t, float>> logit_bias;  // (token, what is added to its logit)
  uint64_t seed = 0;
  uint32_t choice = 0;     // which of several answers to one prompt: other random numbers
  int top_log_probs = -1;  // 0 .. kMaxTopLogProbs: with each token its log-probability and that of
                           // so many best tokens; -1: none
  uint8_t observe = 0;     // msg::Observe bits

  bool penalises() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};
inline constexpr int kMaxTopLogProbs = 20;

enum class FinishReason { kNone, kStop, kLength, kCancelled };

// Of one token of an answer, by the model's own distribution: before penalties, bias, temperature.
struct TokenLogProbs {
  float chosen = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first
};

// What has become of a request. Times are since it was submitted.
struct Completion {
  std::vector<int32_t> tokens;  // without the prompt, with the stop token
  FinishReason reason = FinishReason::kNone;
  std::vector<double> log_probs;               // of prompt tokens 1, 2, ... (observe LogProbs)
  std::vector<TokenLogProbs> token_log_probs;  // of `tokens`, if asked for
  int64_t drafted = 0, accepted = 0;           // over all verification steps
  int64_t verify_steps = 0;
  int preemptions = 0;
  int64_t reused_tokens = 0;  // of the prompt, found in the prefix cache
  double admitted_s = 0;      // the end of queueing
  double first_token_s = 0;
  double last_token_s = 0;
};

}  // namespace troupe::actors
