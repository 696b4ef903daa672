// actors/request.h: what is asked of the scheduler, and what becomes of it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace troupe::actors {

// What another launch has computed of a request: the rows of its prompt, in blocks that this one
// may read (actors/kv_space.h), and the first token of its answer.
struct AdoptedBlocks {
  std::vector<int32_t> blocks;  // ids of foreign blocks, in order of position
  int64_t positions = 0;        // that they hold: those of the prompt
  int32_t first_token = 0;
  std::vector<int32_t> drafts;  // guesses for what follows it; may be none
  // All of them are copied into own blocks, some each step; else only the last one is, if answers
  // would be written there, and the others are read where they lie for as long as the request runs.
  bool pull = false;
  std::function<void()> let_go = {};  // called once, when no step reads the foreign blocks any more
};

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
  // Its blocks stay in use when it has ended by its length, until it is released.
  bool hold = false;
  std::optional<AdoptedBlocks> adopted = {};

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
