// actors/moe_actor.h: the feed-forward part of every layer: dense MLPs, and one expert-parallel rank.
//
// Owns      this rank's experts of every MoE layer, and the exchange that moves rows to experts.
// Hears     StepPlan (which observations are wanted), FeedForward from the attention actor.
// Says      FeedForwardDone.
//
// Holds     the number of dispatch rounds follows from FeedForward.max_rows, which is equal on all
//           ranks: a rank without rows takes part with zero rows and serves its experts.
#pragma once

#include <optional>
#include <vector>

#include "actors/actor.h"
#include "actors/rank_context.h"
#include "comm/moe_exchange.h"

namespace troupe::actors {

class MoeActor final : public Actor {
 public:
  MoeActor(Mailbox& mailbox, const RankContext& context, comm::ProcessGroup& expert_parallel);

 private:
  void on(const msg::StepPlan& plan) override;
  void on(const msg::FeedForward& message) override;

  void run_dense(const model::MlpWeights& weights, Matrix<const float> normed, Matrix<float> hidden);
  void run_moe(const msg::FeedForward& message);
  void route(const model::MoeWeights& weights, int layer, Matrix<const float> normed);
  // One dispatch -> experts -> combine over rows [first, first + count) of the layer's rows.
  void run_round(const model::MoeWeights& weights, Matrix<const float> normed, Matrix<float> hidden,
                 int64_t first, int64_t count);
  void run_expert(const model::MlpWeights& weights, std::span<const comm::MoeExchange::Arrival> rows);
  void add_results(Matrix<float> hidden, Matrix<const float> shared, int64_t first, int64_t count);
  // y = down(swiglu(gate_up(x)))
  void mlp(const model::MlpWeights& weights, Matrix<const float> x, Matrix<float> y);

  RankContext context_;
  std::optional<comm::MoeExchange> exchange_;  // none in a model without experts
  bool observe_router_ = false;
  int expert_rows_;                 // rows of an expert computed at once
  std::vector<Bf16> payload_;       // [exchange.max_tokens, hidden] rows as they travel, bf16 only
  std::vector<int> expert_order_;   // [topk]

  msg::Tensor gate_logits_, topk_ids_, topk_weights_;  // [max_rows, ...]
  msg::Tensor gate_up_, activated_;                    // [max(max_rows, expert_rows), ...]
  msg::Tensor mlp_out_;                                // [max_rows, hidden]
  msg::Tensor expert_in_, expert_out_;                 // [expert_rows, hidden]
};

}  // namespace troupe::actors
