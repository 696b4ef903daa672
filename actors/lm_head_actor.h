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

#include <chrono>
#include <vector>

#include "actors/actor.h"
#include "actors/rank_context.h"
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
  void list_wanted_rows();
  Found consume(const Wanted& wanted, std::span<const float> logits);
  void verify_drafts();
  void send_step_done(std::span<const int32_t> drafts);
  void sample_rows(Matrix<const float> normed);
  // The ranks of an attention group share the work of its rows: what each has found of its slice of
  // the wanted (or draft) rows goes to all of them. `found` has a place for every row.
  void share(std::vector<Found>& found);
  model::Range own_slice(size_t rows) const;
  bool observes(msg::Observe what) const;

  RankContext context_;
  ShardedLogits logits_;
  layers::Sampler sampler_;
  const msg::StepPlan* plan_ = nullptr;  // valid from StepPlan until StepDone
  std::chrono::steady_clock::time_point started_;

  msg::Tensor normed_;           // [max_rows, hidden]
  msg::Tensor counts_, tokens_;  // [max_sequences, 1], [max_sequences, max_drafts + 1]
  msg::Tensor draft_tokens_;     // [max_rows, 1]
  std::vector<Wanted> wanted_;
  std::vector<int> picks_;
  std::vector<Found> found_, shared_;
  std::vector<double> log_probs_;
  std::vector<int32_t> result_counts_, result_tokens_;
};

}  // namespace troupe::actors
