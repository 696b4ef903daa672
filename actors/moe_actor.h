// actors/moe_actor.h: the feed-forward part of every layer: dense MLPs, and one expert-parallel
// rank.
//
// Owns      this rank's experts of every MoE layer (or its part of their width), the exchange
//           that moves rows to experts, and the count of rows that each of them has computed.
// Hears     StepPlan (which observations are wanted), FeedForward from the attention actor.
// Says      FeedForwardDone.
//
// Holds     every rank brings rows of its own, in chunks of chunk_max_len whose number follows from
//           FeedForward.max_rows or the ranks' row counts, equal on all ranks; a chunk takes as
//           many dispatch rounds as the rank with most to send needs; a rank without rows takes
//           part with zero rows and serves its experts with moe_tp, the ranks that hold parts of
//           the same experts first gather each other's rows, each sends all of them to its part of
//           the experts, and the parts' sums meet per (token, expert): the tree is inside an
//           expert, the sum over experts outside it with deterministic: false each rank weighs and
//           adds what its experts make of a token, in fp32, and sends one row: the sum then depends
//           on which experts live together
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "actors/actor.h"
#include "actors/expert_copies.h"
#include "actors/rank_context.h"
#include "actors/row_exchange.h"
#include "actors/token_payload.h"
#include "comm/moe_exchange.h"
#include "layers/linear.h"

namespace troupe::actors {

// By layer index: the rows that each of a rank's physical experts has computed. Of ranks that hold
// parts of the same experts (moe_tp) only the first counts.
using ExpertLoad = std::map<int, std::vector<uint64_t>>;

class MoeActor final : public Actor {
 public:
  MoeActor(Mailbox& mailbox, const RankContext& context);

  const ExpertLoad& expert_load() const { return expert_load_; }

 private:
  // Rows of experts computed together: all of a decode step's, so that the team shares out few
  // large lists of tiles; of a prompt's an expert or two, which stay in cache.
  static constexpr int kExpertRows = 128;

  void on(const msg::StepPlan& plan) override;
  void on(const msg::FeedForward& message) override;

  void allocate_for_experts();
  // y = round(down(swiglu(gate_up(x)))), the MLP cut over the ranks of `group`.
  void run_mlp(const model::MlpWeights& weights, RowExchange& group, Matrix<const float> x,
               Matrix<float> y);
  // This rank's part of it: a sum over its leaves of the width, not rounded.
  void mlp_part(const model::MlpWeights& weights, Matrix<const float> x, Matrix<float> y);
  // SwiGLU of gate_up, in the form that `down` reads; `rows` as in InputBuffer::prepare.
  layers::PreparedRows activate(const model::PackedMatrix& down, Matrix<const float> gate_up,
                                Matrix<float> rows);
  void swiglu(Matrix<const float> gate_up, Matrix<float> out) const;
  void run_moe(const msg::FeedForward& message, const model::MoeWeights& weights);
  void route(const model::MoeWeights& weights, int layer, Matrix<const float> normed);
  void force_balance(Matrix<int32_t> ids) const;
  // Rows [first, first + count) of the layer's own rows: dispatch -> experts -> combine, in rounds.
  void run_chunk(const model::MoeWeights& weights, Matrix<const float> normed, Matrix<float> hidden,
                 int64_t first, int64_t count);
  // The rows of all moe_tp ranks, packed, with their choices.
  comm::MoeExchange::Tokens chunk_tokens(Matrix<const float> own, int64_t first);
  Matrix<const int32_t> choose_copies(Matrix<const int32_t> ids);
  void run_shared_expert(const model::MoeWeights& weights, Matrix<const float> rows);
  // The shared expert of a chunk, where it is whole on every rank: computed while rows travel.
  void run_whole_shared_expert(const model::MoeWeights& weights, Matrix<const float> own,
                               Matrix<float> out);
  void run_experts(const model::MoeWeights& weights);
  void count_expert_rows(int local_expert, int64_t rows);  // for the report, and the trace
  // The experts' rows are collected, kExpertRows at a time, and computed together.
  void add_expert_rows(const model::MlpWeights& weights,
                       std::span<const comm::MoeExchange::Arrival> rows);
  void run_expert_rows();
  static void set_inputs(std::span<layers::LinearJob> jobs, const layers::PreparedRows& all);
  void keep_results(Matrix<const float> out);
  // Adds the experts' results to the tokens [done, done + taken) of the chunk that this round
  // answered: to those of them that are this rank's own.
  void add_answers(Matrix<const float> shared, Matrix<float> hidden, int64_t first, int64_t done,
                   int64_t taken);
  void unpack_answers(int64_t token, Matrix<float> rows) const;
  // answer(i): the row of the token's i-th expert, or rank.
  template <class Answer>
  void add_token(const Answer& answer, int count, RowFormat format, const float* shared,
                 Matrix<float> hidden, int64_t row) const;
  bool per_rank() const { return answer_ == comm::Answer::kPerRank; }
  int64_t max_own_rows(const msg::FeedForward& message) const;

  RankContext context_;
  std::unique_ptr<comm::MoeExchange> exchange_;  // none in a model without experts
  RowExchange dense_rows_, shared_rows_;
  RowExchange moe_tp_rows_, moe_tp_ids_, moe_tp_weights_;  // of one chunk
  RowExchange moe_tp_results_;                             // of one round
  bool observe_router_ = false;
  layers::InputBuffer inputs_;
  comm::Answer answer_;
  int answer_rows_ = 0;           // of a token, once they are unpacked: topk, or 1 (kPerRank)
  int64_t chunk_rows_ = 0;        // own rows of a chunk, at most
  PayloadFormat payload_format_;  // of a token's row on its way out
  RowFormat result_format_;       // of a result row on its way back
  std::vector<comm::MoeExchange::Arrival> expert_arrivals_;  // those not yet computed
  std::vector<layers::LinearJob> gate_up_jobs_, down_jobs_;  // one per expert among them
  std::vector<std::span<const float>> gate_up_biases_;       // of the same experts
  std::span<const float> down_bias_;                         // of the layer
  int layer_ = 0;
  int64_t step_ = 0;
  ExpertCopies copies_;
  ExpertLoad expert_load_;
  std::vector<int32_t> chunk_rows_of_, answer_rows_of_;  // [world], of a chunk, of a round

  msg::Tensor gate_logits_, topk_ids_, topk_weights_;  // [max_rows, ...] own rows
  msg::Tensor physical_ids_;                 // [rows of a chunk, topk] of all moe_tp ranks
  msg::Tensor expert_order_;                 // [max_rows, topk] of topk_ids, by ascending expert
  msg::Tensor gate_up_, activated_;          // [rows of the widest group, ...]
  msg::Tensor mlp_partial_;                  // the same, [.., hidden]
  msg::Tensor mlp_out_;                      // [max_rows, hidden]
  msg::Tensor expert_in_, expert_out_;       // [rows computed together, hidden]
  msg::Tensor payload_;                      // [rows of a chunk, a packed row]
  msg::Tensor partial_sums_;                 // [results a rank can owe, hidden] kPerRank
  msg::Tensor union_answers_, own_answers_;  // [rows of a chunk * ..., hidden], moe_tp > 1
};

}  // namespace troupe::actors
