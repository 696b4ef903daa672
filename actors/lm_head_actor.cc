#include "actors/lm_head_actor.h"

#include <cstring>
#include <numeric>

#include "layers/linear.h"
#include "layers/rms_norm.h"

namespace troupe::actors {

namespace {

// Index of the first sampled row within a sequence's tokens: the last accepted token.
int base_row(const msg::SequencePlan& sequence) {
  return static_cast<int>(sequence.tokens()->size()) - 1 - sequence.num_drafts();
}

layers::SamplingParams sampling_params(const msg::Sampling& s) {
  return {.temperature = s.temperature(),
          .top_k = s.top_k(),
          .top_p = s.top_p(),
          .min_p = s.min_p(),
          .seed = s.seed(),
          .choice = s.choice()};
}

}  // namespace

LmHeadActor::LmHeadActor(Mailbox& mailbox, const RankContext& context)
    : Actor(mailbox, msg::ActorKind::LmHead),
      context_(context),
      logits_(context),
      sampler_(context.config.vocab_size),
      adjusted_(context.config.vocab_size) {
  Workspace& workspace = context_.workspace;
  const int64_t hidden = context_.config.hidden_size;
  normed_ = workspace.allocate(context_.max_rows, hidden);
  counts_ = workspace.allocate(context_.max_sequences, 1);
  tokens_ = workspace.allocate(context_.max_sequences, context_.max_drafts + 1);
  draft_tokens_ = workspace.allocate(context_.max_rows, 1);
  wanted_.reserve(context_.max_rows);
  picks_.reserve(context_.max_rows);
  log_probs_.reserve(context_.max_rows);
  result_counts_.reserve(context_.max_sequences);
  result_tokens_.reserve(context_.max_sequences * (context_.max_drafts + 1));
}

bool LmHeadActor::observes(msg::Observe what) const {
  return (plan_->observe() & static_cast<uint8_t>(what)) != 0;
}

void LmHeadActor::on(const msg::StepPlan& plan) {
  plan_ = &plan;
  started_ = std::chrono::steady_clock::now();
}

// Index within the sequence's tokens.
int LmHeadActor::first_wanted(const msg::SequencePlan& sequence) const {
  if (observes(msg::Observe::LogProbs) || observes(msg::Observe::Logits)) return 0;
  return sequence.sample() ? base_row(sequence) : static_cast<int>(sequence.tokens()->size());
}

void LmHeadActor::list_wanted_rows() {
  wanted_.clear();
  int row = 0, sequence_idx = 0;
  for (const msg::SequencePlan* sequence : *plan_->sequences()) {
    const int size = static_cast<int>(sequence->tokens()->size());
    TROUPE_CHECK(sequence->num_drafts() >= 0 && sequence->num_drafts() <= context_.max_drafts &&
                     base_row(*sequence) >= 0,
                 "{} drafts of {} tokens", sequence->num_drafts(), size);
    for (int i = first_wanted(*sequence); i < size; ++i)
      wanted_.push_back({row + i, sequence_idx, i});
    row += size;
    ++sequence_idx;
  }
}

model::Range LmHeadActor::own_slice(size_t rows) const {
  const comm::ProcessGroup& group = context_.groups->attn_tp;
  return model::piece(static_cast<int64_t>(rows), group.rank(), group.size());
}

template <class T>
void LmHeadActor::share(std::vector<T>& found, std::vector<T>& scratch) {
  comm::ProcessGroup& group = context_.groups->attn_tp;
  if (group.size() == 1) return;
  const auto longest = (found.size() + group.size() - 1) / group.size();
  scratch.assign(longest * group.size(), {});
  const model::Range own = own_slice(found.size());
  const auto mine = std::span(scratch).subspan(group.rank() * longest, longest);
  std::copy(found.begin() + own.begin, found.begin() + own.end, mine.begin());
  group.all_gather(std::as_bytes(mine), std::as_writable_bytes(std::span(scratch)));
  for (int r = 0; r < group.size(); ++r) {
    const model::Range slice = model::piece(static_cast<int64_t>(found.size()), r, group.size());
    std::copy_n(scratch.begin() + static_cast<ptrdiff_t>(r * longest), slice.size(),
                found.begin() + slice.begin);
  }
}

LmHeadActor::Found LmHeadActor::consume(const Wanted& wanted, std::span<const float> logits) {
  const msg::SequencePlan& sequence = *plan_->sequences()->Get(wanted.sequence);
  const int size = static_cast<int>(sequence.tokens()->size());
  Found found;
  if (observes(msg::Observe::LogProbs)) {
    if (wanted.index + 1 < size)
      found.log_prob = layers::log_probability(logits, sequence.tokens()->Get(wanted.index + 1));
    else if (!sequence.sample())
      found.log_prob = layers::log_probability(logits, sequence.next_token());
  }
  if (sequence.sample() && wanted.index >= base_row(sequence))
    found.token = sampler_.sample(
        adjusted_.of(sequence, wanted.index, logits), sampling_params(*sequence.sampling()),
        static_cast<uint64_t>(sequence.first_position()) + wanted.index + 1);
  return found;
}

LmHeadActor::Best LmHeadActor::best_of(const Wanted& wanted, std::span<const float> logits,
                                       int32_t chosen) {
  const msg::SequencePlan& sequence = *plan_->sequences()->Get(wanted.sequence);
  const int top = sequence.sampling()->top_log_probs();
  Best best;
  if (top < 0 || chosen < 0) return best;
  TROUPE_CHECK(top <= kMaxTopLogProbs, "{}", top);
  best.chosen = static_cast<float>(layers::log_probability(logits, chosen));
  layers::top_log_probabilities(logits, std::span(best.tokens).first(top),
                                std::span(best.log_probs).first(top));
  return best;
}

// Logits of the wanted rows, and what follows from them, for every rank of the attention group.
void LmHeadActor::sample_rows(Matrix<const float> normed) {
  list_wanted_rows();
  const model::Range own = own_slice(wanted_.size());
  picks_.clear();
  for (int64_t i = own.begin; i < own.end; ++i) picks_.push_back(wanted_[i].row);
  found_.assign(wanted_.size(), {});
  const bool wants_best = plan_->top_log_probs() >= 0;
  best_.assign(wants_best ? wanted_.size() : 0, {});
  logits_.for_each(context_.weights.lm_head, normed, picks_, plan_->candidates(),
                   [&](int i, std::span<const float> logits) {
                     const Wanted& wanted = wanted_[own.begin + i];
                     Found& found = found_[own.begin + i];
                     const auto span = context_.span(comm::TraceOp::kSample, 1);
                     found = consume(wanted, logits);
                     if (wants_best) best_[own.begin + i] = best_of(wanted, logits, found.token);
                     if (observes(msg::Observe::Logits))
                       std::memcpy(context_.observation.logits().row(i), logits.data(),
                                   logits.size_bytes());
                   });
  share(found_, shared_found_);
  if (wants_best) share(best_, shared_best_);

  const Matrix<int32_t> tokens = context_.workspace.ints(tokens_);
  log_probs_.clear();
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const msg::SequencePlan& sequence = *plan_->sequences()->Get(wanted_[i].sequence);
    const int draft = wanted_[i].index - base_row(sequence);
    if (sequence.sample() && draft >= 0) tokens.row(wanted_[i].sequence)[draft] = found_[i].token;
    const bool last = wanted_[i].index + 1 == static_cast<int>(sequence.tokens()->size());
    if (observes(msg::Observe::LogProbs) && !(last && sequence.sample()))
      log_probs_.push_back(found_[i].log_prob);
  }
}

// The longest prefix of drafts that equals what was sampled at their positions.
int LmHeadActor::accepted_drafts(const msg::SequencePlan& sequence, const int32_t* sampled) const {
  const int first_draft = base_row(sequence) + 1;
  int accepted = 0;
  while (accepted < sequence.num_drafts() &&
         sequence.tokens()->Get(first_draft + accepted) == sampled[accepted])
    ++accepted;
  return accepted;
}

void LmHeadActor::tell_log_probs(const msg::SequencePlan& sequence, const Best& best) {
  const int top = sequence.sampling()->top_log_probs();
  if (top < 0) return;
  result_log_probs_.push_back(best.chosen);
  result_log_probs_.insert(result_log_probs_.end(), best.log_probs.begin(),
                           best.log_probs.begin() + top);
  result_top_tokens_.insert(result_top_tokens_.end(), best.tokens.begin(),
                            best.tokens.begin() + top);
}

// The accepted drafts are the sequence's tokens; the one sampled after them comes on top.
void LmHeadActor::verify_drafts() {
  const Matrix<int32_t> counts = context_.workspace.ints(counts_);
  const Matrix<int32_t> tokens = context_.workspace.ints(tokens_);
  result_counts_.clear();
  result_tokens_.clear();
  result_log_probs_.clear();
  result_top_tokens_.clear();
  int s = 0, wanted = 0;
  for (const msg::SequencePlan* sequence : *plan_->sequences()) {
    const int32_t* sampled = tokens.row(s);
    const int count = sequence->sample() ? accepted_drafts(*sequence, sampled) + 1 : 0;
    const int first = first_wanted(*sequence);
    const int base = wanted + base_row(*sequence) - first;
    for (int i = 0; i < count && !best_.empty(); ++i) tell_log_probs(*sequence, best_[base + i]);
    wanted += static_cast<int>(sequence->tokens()->size()) - first;
    counts.row(s++)[0] = count;
    result_counts_.push_back(count);
    result_tokens_.insert(result_tokens_.end(), sampled, sampled + count);
  }
}

void LmHeadActor::on(const msg::LayersDone& done) {
  const Matrix<float> hidden = context_.workspace.floats(*done.hidden());
  const auto span = context_.span(comm::TraceOp::kLogits, hidden.rows);
  const msg::Tensor normed_tensor = first_rows(normed_, hidden.rows);
  const Matrix<float> normed = context_.workspace.floats(normed_tensor);
  layers::rms_norm(hidden, context_.weights.final_norm, context_.config.rms_norm_eps, normed,
                   context_.rounding);
  sample_rows(normed);
  verify_drafts();
  if (!plan_->run_mtp()) return send_step_done({});
  const msg::Tensor counts = first_rows(counts_, plan_->sequences()->size());
  const msg::Tensor tokens = first_rows(tokens_, plan_->sequences()->size());
  tell(neighbour(msg::ActorKind::Mtp),
       [&](auto& b) { return msg::CreateVerified(b, &normed_tensor, &counts, &tokens); });
}

void LmHeadActor::on(const msg::DraftRows& rows) {
  const Matrix<float> normed = context_.workspace.floats(*rows.normed());
  const auto span = context_.span(comm::TraceOp::kLogits, normed.rows);
  const msg::Tensor tokens_tensor = first_rows(draft_tokens_, normed.rows);
  const model::Range own = own_slice(normed.rows);
  picks_.resize(own.size());
  std::iota(picks_.begin(), picks_.end(), static_cast<int>(own.begin));
  found_.assign(normed.rows, {});
  logits_.for_each(context_.weights.mtp->head, normed, picks_, rows.observed() ? 0 : 1,
                   [&](int i, std::span<const float> logits) {
                     const auto sample = context_.span(comm::TraceOp::kSample, 1);
                     found_[own.begin + i].token = layers::argmax(logits);
                     if (rows.observed())
                       std::memcpy(context_.observation.mtp_logits().row(i), logits.data(),
                                   logits.size_bytes());
                   });
  share(found_, shared_found_);
  const Matrix<int32_t> tokens = context_.workspace.ints(tokens_tensor);
  for (int64_t i = 0; i < tokens.rows; ++i) tokens.row(i)[0] = found_[i].token;
  tell(neighbour(msg::ActorKind::Mtp),
       [&](auto& b) { return msg::CreateDraftTokens(b, &tokens_tensor); });
}

void LmHeadActor::on(const msg::Drafted& drafted) {
  const Matrix<int32_t> drafts = context_.workspace.ints(*drafted.drafts());
  send_step_done({drafts.data, static_cast<size_t>(drafts.rows * drafts.cols)});
}

void LmHeadActor::send_step_done(std::span<const int32_t> drafts) {
  const auto elapsed = std::chrono::steady_clock::now() - started_;
  auto& b = builder();
  const auto counts = b.CreateVector(result_counts_);
  const auto tokens = b.CreateVector(result_tokens_);
  const auto draft_vector = b.CreateVector(drafts.data(), drafts.size());
  const auto log_probs = b.CreateVector(log_probs_);
  const auto sampled_log_probs = b.CreateVector(result_log_probs_);
  const auto top_tokens = b.CreateVector(result_top_tokens_);
  send({kLauncherRank, msg::ActorKind::Scheduler},
       msg::CreateStepDone(
           b, plan_->step(), counts, tokens, draft_vector, log_probs,
           static_cast<uint64_t>(
               std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count()),
           sampled_log_probs, top_tokens));
  plan_ = nullptr;
}

}  // namespace troupe::actors
