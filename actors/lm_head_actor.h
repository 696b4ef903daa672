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
#include <functional>
#include <vector>

#include "actors/actor.h"
#include "actors/rank_context.h"
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
  void list_wanted_rows();
  void consume(const Wanted& wanted, std::span<const float> logits);
  void verify_drafts();
  void send_step_done(std::span<const int32_t> drafts);
  // Calls use(i, logits) for the logits of rows[i], computed in blocks.
  void for_each_logits(const model::PackedMatrix& head, Matrix<const float> rows,
                       std::span<const int> picks,
                       const std::function<void(int, std::span<const float>)>& use);
  bool observes(msg::Observe what) const;

  RankContext context_;
  layers::Sampler sampler_;
  const msg::StepPlan* plan_ = nullptr;  // valid from StepPlan until StepDone
  std::chrono::steady_clock::time_point started_;

  msg::Tensor normed_;           // [max_rows, hidden]
  msg::Tensor block_, logits_;   // [logit rows, hidden], [logit rows, vocab]
  msg::Tensor counts_, tokens_;  // [max_sequences, 1], [max_sequences, max_drafts + 1]
  msg::Tensor draft_tokens_;     // [max_rows, 1]
  std::vector<Wanted> wanted_;
  std::vector<int> picks_;
  std::vector<double> log_probs_;
  std::vector<int32_t> result_counts_, result_tokens_;
};

}  // namespace troupe::actors
