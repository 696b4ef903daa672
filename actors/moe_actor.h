// actors/moe_actor.h: the feed-forward part of every layer: dense MLPs, and one expert-parallel
// rank.
//
// Owns      this rank's experts of every MoE layer (or its part of their width), and the exchange
//           that moves rows to experts.
// Hears     StepPlan (which observations are wanted), FeedForward from the attention actor.
// Says      FeedForwardDone.
//
// Holds     every rank brings rows of its own; the number of dispatch rounds follows from
//           FeedForward.max_rows or the ranks' row counts, equal on all ranks: a rank without rows
//           takes part with zero rows and serves its experts
//           with moe_tp, the ranks that hold parts of the same experts first gather each other's
//           rows, each sends all of them to its part of the experts, and the parts' sums meet per
//           (token, expert): the tree is inside an expert, the sum over experts outside it
#pragma once

#include <optional>
#include <vector>

#include "actors/actor.h"
#include "actors/rank_context.h"
#include "actors/row_exchange.h"
#include "comm/moe_exchange.h"

namespace troupe::actors {

class MoeActor final : public Actor {
 public:
  MoeActor(Mailbox& mailbox, const RankContext& context);

 private:
  void on(const msg::StepPlan& plan) override;
  void on(const msg::FeedForward& message) override;

  // y = round(down(swiglu(gate_up(x)))), the MLP cut over the ranks of `group`.
  void run_mlp(const model::MlpWeights& weights, RowExchange& group, Matrix<const float> x,
               Matrix<float> y);
  // This rank's part of it: a sum over its leaves of the width, not rounded.
  void mlp_part(const model::MlpWeights& weights, Matrix<const float> x, Matrix<float> y);
  void run_moe(const msg::FeedForward& message, const model::MoeWeights& weights);
  void route(const model::MoeWeights& weights, int layer, Matrix<const float> normed);
  // One dispatch -> experts -> combine over rows [first, first + count) of the layer's own rows.
  void run_round(const model::MoeWeights& weights, Matrix<const float> normed, Matrix<float> hidden,
                 int64_t first, int64_t count);
  void start_dispatch(Matrix<const float> rows, Matrix<const int32_t> ids);
  void run_shared_expert(const model::MoeWeights& weights, Matrix<const float> rows);
  // The experts' rows are collected, kExpertRows at a time, and computed together.
  void add_expert_rows(const model::MlpWeights& weights,
                       std::span<const comm::MoeExchange::Arrival> rows);
  void run_expert_rows();
  // The expert rows [count * topk, hidden] of the own rows, rounded to the dtype.
  Matrix<const float> collect_results(int64_t union_rows, int64_t count);
  void add_results(Matrix<const float> results, Matrix<const float> shared, Matrix<float> hidden,
                   int64_t first);
  int64_t max_own_rows(const msg::FeedForward& message) const;

  RankContext context_;
  std::optional<comm::MoeExchange> exchange_;  // none in a model without experts
  RowExchange dense_rows_, shared_rows_;
  RowExchange moe_tp_rows_, moe_tp_ids_, moe_tp_results_;  // of one round
  bool observe_router_ = false;
  int64_t round_rows_ = 0;                                   // own rows of one round, at most
  RowFormat result_format_;                                  // of an expert's row on its way back
  std::vector<Bf16> payload_;                                // rows as they travel, bf16 only
  std::vector<int> expert_order_;                            // [topk]
  std::vector<comm::MoeExchange::Arrival> expert_arrivals_;  // those not yet computed
  std::vector<layers::LinearJob> gate_up_jobs_, down_jobs_;  // one per expert among them
  std::vector<int32_t> round_rows_of_, round_results_of_;    // [world], of the current round

  msg::Tensor gate_logits_, topk_ids_, topk_weights_;  // [max_rows, ...] own rows
  msg::Tensor gate_up_, activated_;                    // [rows of the widest group, ...]
  msg::Tensor mlp_partial_;                            // the same, [.., hidden]
  msg::Tensor mlp_out_;                                // [max_rows, hidden]
  msg::Tensor expert_in_, expert_out_;                 // [rows computed together, hidden]
  msg::Tensor union_results_, own_results_;            // [rows of a round * topk, hidden]
};

}  // namespace troupe::actors
