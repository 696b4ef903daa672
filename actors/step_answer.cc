#include "actors/step_answer.h"

#include "base/error.h"

namespace troupe::actors {

namespace {

template <class T>
std::span<const T> view(const flatbuffers::Vector<T>* values) {
  return values == nullptr ? std::span<const T>() : std::span(values->data(), values->size());
}

}  // namespace

AnswerReader::AnswerReader(int rank, const msg::StepDone& done)
    : rank_(rank),
      step_(done.step()),
      counts_(view(done.counts())),
      tokens_(view(done.tokens())),
      drafts_(view(done.drafts())),
      top_tokens_(view(done.top_tokens())),
      log_probs_(view(done.log_probs())),
      sampled_log_probs_(view(done.sampled_log_probs())) {}

template <class T>
std::span<const T> AnswerReader::take(std::span<const T>& values, size_t count) const {
  if (count > values.size()) fail();
  const auto taken = values.first(count);
  values = values.subspan(count);
  return taken;
}

SequenceAnswer AnswerReader::next(const Sequence& s, int draft_steps, bool with_log_probs) {
  const int32_t count = take(counts_, 1)[0];
  if (s.sample ? count < 1 || count > s.num_drafts + 1 : count != 0) fail();
  const int log_probs = s.sample ? s.count - 1 : s.count;
  const int top = s.request.top_log_probs;
  return {.tokens = take(tokens_, count),
          .drafts = take(drafts_, s.sample ? draft_steps : 0),
          .log_probs = take(log_probs_, with_log_probs ? log_probs : 0),
          .sampled_log_probs = take(sampled_log_probs_, top < 0 ? 0 : count * (1 + top)),
          .top_tokens = take(top_tokens_, top < 0 ? 0 : count * top)};
}

void AnswerReader::expect_end() const {
  if (!counts_.empty() || !tokens_.empty() || !drafts_.empty() || !log_probs_.empty() ||
      !sampled_log_probs_.empty() || !top_tokens_.empty())
    fail();
}

void AnswerReader::fail() const {
  throw_rank_error("rank {}'s answer to step {} has the wrong shape", rank_, step_);
}

}  // namespace troupe::actors
