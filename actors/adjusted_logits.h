// actors/adjusted_logits.h: a row of logits after a request's bias and penalties, in this order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "actors/messages/message_generated.h"

namespace troupe::actors {

class AdjustedLogits {
 public:
  explicit AdjustedLogits(int64_t vocab_size) : row_(vocab_size) {}

  // `logits` [vocab] of row `index` of the sequence's tokens. Drafts up to this row count as tokens
  // of the answer: whether they are is known when the row matters. The result is `logits` where
  // nothing is asked for, else valid until the next call. Does not allocate.
  std::span<const float> of(const msg::SequencePlan& sequence, int index,
                            std::span<const float> logits);

 private:
  void add_bias(const msg::SequencePlan& sequence);
  void penalise(const msg::SequencePlan& sequence, std::span<const int32_t> drafts);
  float& at(int32_t token);

  std::vector<float> row_;  // [vocab]
};

}  // namespace troupe::actors
