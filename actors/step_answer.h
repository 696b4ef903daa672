// actors/step_answer.h: what a rank says of the sequences of its plan, one after the other.
#pragma once

#include <cstdint>
#include <span>

#include "actors/messages/message_generated.h"
#include "actors/sequence.h"

namespace troupe::actors {

struct SequenceAnswer {
  std::span<const int32_t> tokens;  // empty without sampling
  std::span<const int32_t> drafts;
  std::span<const double> log_probs;  // of prompt tokens
  // Of each token, if asked for: its own, then that of the `top_tokens`.
  std::span<const float> sampled_log_probs;
  std::span<const int32_t> top_tokens;
};

// Cuts the flat arrays of a StepDone into the answers of the planned sequences, in their order.
// RankError when they are too short or too long.
class AnswerReader {
 public:
  AnswerReader(int rank, const msg::StepDone& done);

  SequenceAnswer next(const Sequence& s, int draft_steps, bool with_log_probs);
  void expect_end() const;

 private:
  template <class T>
  std::span<const T> take(std::span<const T>& values, size_t count) const;
  [[noreturn]] void fail() const;

  int rank_;
  uint64_t step_;
  std::span<const int32_t> counts_, tokens_, drafts_, top_tokens_;
  std::span<const double> log_probs_;
  std::span<const float> sampled_log_probs_;
};

}  // namespace troupe::actors
