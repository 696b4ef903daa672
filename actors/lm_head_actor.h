// actors/lm_head_actor.h: from hidden rows to tokens: final norm, LM head, sampling, verification.
//
// Owns      the sampler and the step's result.
// Hears     StepPlan; LayersDone from the attention actor: samples, compares drafts; DraftRows from
//           the MTP actor: arg-max through the MTP head; Drafted: the drafts for the next step.
// Says      Verified and DraftTokens to the MTP actor, StepDone to the scheduler: once per step.
//
// Holds     logits are computed only for rows that are sampled or observed, a few rows at a time
//           a position's token depends on its logits and its own random number alone, so drafts
//           change how many tokens a step yields, never which
#pragma once

#include <array>
#include <chrono>
#include <vector>

#include "actors/actor.h"
#include "actors/adjusted_logits.h"
#include "actors/rank_context.h"
#include "actors/request.h"
#include "actors/sharded_logits.h"
#include "layers/sampler.h"

namespace troupe::actors {

class LmHeadActor final : public Actor {
 public:
  LmHeadActor(Mailbox& mailbox, const RankContext& context);

 private:
  void on(const msg::StepPlan& plan) override;
  void on(const msg::LayersDone& done) override;
  void on(const msg::DraftRows& rows) override;
  void on(const msg::Drafted& drafted) override;

  struct Wanted {  // a row whose logits are needed
    int row;       // of the step
    int sequence;  // of the plan
    int index;     // within the sequence's tokens
  };
  struct Found {  // of one row's logits
    double log_prob = 0;
    int32_t token = -1;
  };
  struct Best {  // of one row's logits, for a request with top_log_probs
    float chosen = 0;
    std::array<float, kMaxTopLogProbs> log_probs{};
    std::array<int32_t, kMaxTopLogProbs> tokens{};
  };
  int first_wanted(const msg::SequencePlan& sequence) const;
  void list_wanted_rows();
  Found consume(const Wanted& wanted, std::span<const float> logits);
  Best best_of(const Wanted& wanted, std::span<const float> logits, int32_t chosen);
  void verify_drafts();
  int accepted_drafts(const msg::SequencePlan& sequence, const int32_t* sampled) const;
  void tell_log_probs(const msg::SequencePlan& sequence, const Best& best);
  void send_step_done(std::span<const int32_t> drafts);
  void sample_rows(Matrix<const float> normed);
  // The ranks of an attention group share the work of its rows: what each has found of its slice of
  // the wanted (or draft) rows goes to all of them. `found` has a place for every row.
  template <class T>
  void share(std::vector<T>& found, std::vector<T>& scratch);
  model::Range own_slice(size_t rows) const;
  bool observes(msg::Observe what) const;

  RankContext context_;
  ShardedLogits logits_;
  layers::Sampler sampler_;
  AdjustedLogits adjusted_;
  const msg::StepPlan* plan_ = nullptr;  // valid from StepPlan until StepDone
  std::chrono::steady_clock::time_point started_;

  msg::Tensor normed_;           // [max_rows, hidden]
  msg::Tensor counts_, tokens_;  // [max_sequences, 1], [max_sequences, max_drafts + 1]
  msg::Tensor draft_tokens_;     // [max_rows, 1]
  std::vector<Wanted> wanted_;
  std::vector<int> picks_;
  std::vector<Found> found_, shared_found_;
  std::vector<Best> best_, shared_best_;  // of the wanted rows, when the plan has top_log_probs
  std::vector<double> log_probs_;
  std::vector<int32_t> result_counts_, result_tokens_, result_top_tokens_;
  std::vector<float> result_log_probs_;
};

}  // namespace troupe::actors
