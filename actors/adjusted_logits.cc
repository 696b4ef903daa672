#include "actors/adjusted_logits.h"

#include <algorithm>

#include "base/error.h"
#include "layers/sampler.h"

namespace troupe::actors {

float& AdjustedLogits::at(int32_t token) {
  TROUPE_CHECK(token >= 0 && token < std::ssize(row_), "token {} of {}", token, row_.size());
  return row_[token];
}

void AdjustedLogits::add_bias(const msg::SequencePlan& sequence) {
  for (const msg::TokenBias* bias : *sequence.logit_bias()) at(bias->token()) += bias->bias();
}

void AdjustedLogits::penalise(const msg::SequencePlan& sequence, std::span<const int32_t> drafts) {
  const msg::Sampling& sampling = *sequence.sampling();
  const layers::Penalties penalties{.repetition = sampling.repetition_penalty(),
                                    .presence = sampling.presence_penalty(),
                                    .frequency = sampling.frequency_penalty()};
  const auto& seen = *sequence.seen();
  const auto drafted = [&](int32_t token) {
    return static_cast<int>(std::ranges::count(drafts, token));
  };
  for (const msg::TokenCount* token : seen)
    at(token->token()) =
        layers::penalised(at(token->token()), penalties, token->count() + drafted(token->token()));
  for (size_t i = 0; i < drafts.size(); ++i) {
    const int32_t draft = drafts[i];
    const bool again = std::ranges::find(drafts.first(i), draft) != drafts.begin() + i;
    if (again || std::ranges::any_of(seen, [&](const auto* t) { return t->token() == draft; }))
      continue;
    at(draft) = layers::penalised(at(draft), penalties, drafted(draft));
  }
}

std::span<const float> AdjustedLogits::of(const msg::SequencePlan& sequence, int index,
                                          std::span<const float> logits) {
  if (sequence.seen() == nullptr && sequence.logit_bias() == nullptr) return logits;
  TROUPE_CHECK(logits.size() == row_.size(), "{} logits of {}", logits.size(), row_.size());
  std::ranges::copy(logits, row_.begin());
  if (sequence.logit_bias() != nullptr) add_bias(sequence);
  if (sequence.seen() != nullptr) {
    const auto& tokens = *sequence.tokens();
    const int first_draft = static_cast<int>(tokens.size()) - sequence.num_drafts();
    penalise(sequence,
             std::span(tokens.data(), tokens.size()).subspan(first_draft, index + 1 - first_draft));
  }
  return row_;
}

}  // namespace troupe::actors
