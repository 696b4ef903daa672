// comm/moe_exchange.h: MoE dispatch/combine, the pair of all-to-alls around the experts.
//
// A token's row travels to the ranks that hold its chosen experts, and one result row per (token,
// expert), or per (token, rank), comes back; the caller weighs and adds them. Two forms with the
// same results, bit by bit: FusedExchange (comm/fused_exchange.h) sends a row once to each rank and
// lets experts work in the windows; DoubleRouting (comm/double_routing.h) sorts and copies rows for
// plain all_to_all_v calls, as prefill on an NPU does.
//
// Rounds: start_dispatch takes as many tokens as fit; when more() says that some rank has some
// left, all ranks of the group run another round, those without tokens with zero of them. How far
// a rank gets depends on its own tokens alone: nothing is dropped, however skewed the choices.
//
//   do {
//     start_dispatch(rows of the tokens that are left);
//     finish_dispatch();   // between the two: whatever needs no other rank
//     ... the first taken() of them are in this round
//     ... compute arrivals(e) of every local expert into result_row(...)
//     start_combine();  finish_combine();
//     ... read result(token, i) of the taken tokens
//     release();
//   } while (more());
//
// Inside a round the windows between the ranks of its group belong to it: collectives with any of
// them come before start_dispatch (handles still in flight are completed there) or after release;
// those of groups that share no other rank with this one may run at any time.
//
// With CommMode::kThread the rank's comm thread does each half of a round from start to finish,
// waits and sorting included, while its main thread computes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/process_group.h"

namespace troupe::comm {

// What an expert rank sends back for a token.
enum class Answer {
  kPerExpert,  // one row per chosen expert
  kPerRank,    // one row per rank that holds any of them: the caller there weighs and adds first
};

struct MoeExchangeShape {
  int num_experts = 0;  // divisible by group.size(); rank r holds the r-th run of them
  int topk = 0;
  size_t row_bytes = 0;     // a token's payload on the way out
  size_t result_bytes = 0;  // a result row on the way back
  int64_t max_tokens = 0;   // tokens of one rank and round, at most (moe_chunk_max_len)
  Answer answer = Answer::kPerExpert;
};

class MoeExchange {
 public:
  MoeExchange(ProcessGroup& group, const MoeExchangeShape& shape);
  virtual ~MoeExchange() = default;
  MoeExchange(const MoeExchange&) = delete;
  MoeExchange& operator=(const MoeExchange&) = delete;

  const MoeExchangeShape& shape() const { return shape_; }
  int num_local_experts() const { return local_experts_; }
  int first_local_expert() const { return first_expert_; }

  // A row for a local expert. `row` points into a window, or into the caller's own rows; it stays
  // valid until the first result of its source is written (kPerRank), or until release.
  struct Arrival {
    const std::byte* row = nullptr;
    float weight = 0;         // as dispatched; kPerRank only
    int32_t source = 0;       // group rank that sent it
    int32_t result_slot = 0;  // which result row of that source answers it
  };

  // What a rank dispatches: its tokens that have not been taken yet.
  struct Tokens {
    const std::byte* rows = nullptr;  // [count, shape.row_bytes], row_stride bytes apart
    int64_t row_stride = 0;
    int64_t count = 0;
    std::span<const int32_t> topk_ids;  // [count * topk], distinct for each token
    std::span<const float> weights;     // the same shape; kPerRank only

    Tokens from(int64_t first, int topk) const;  // without the first ones
  };
  // Starts a round: sends the first tokens, as many as fit. Their rows must stay until release, ids
  // and weights until finish_dispatch.
  void start_dispatch(const Tokens& tokens);
  // Waits for what the other ranks send.
  void finish_dispatch();
  // From finish_dispatch (inline: start_dispatch) until the next round: how many tokens were sent.
  int64_t taken() const { return taken_; }
  // Likewise: some rank has tokens left.
  bool more() const { return more_; }

  // The rows of local expert e, sorted by source rank, then by token: an order that no timing
  // changes.
  std::span<const Arrival> arrivals(int local_expert) const;
  int64_t total_arrivals() const { return static_cast<int64_t>(first_arrival_.back()); }

  // Result rows owed to a source, numbered from first_result(source) through all sources.
  int64_t num_results(int source) const { return first_result(source + 1) - first_result(source); }
  int64_t first_result(int source) const { return first_result_[source]; }
  // Where one of them must be written, result_bytes long: straight into shared memory, for own
  // tokens into local memory. Between finish_dispatch and start_combine. kPerRank: may lie where a
  // row arrived, so nothing of the source may be written while its rows are read.
  virtual std::byte* result_row(int source, int64_t result_slot) = 0;
  std::byte* result_row(const Arrival& arrival) {
    return result_row(arrival.source, arrival.result_slot);
  }

  // Sends the results (all must have been written); waits for those of this rank's own tokens.
  void start_combine();
  void finish_combine();

  // The results of a token that was taken in this round, from finish_combine until release().
  // kPerExpert: topk of them, in the order of topk_ids. kPerRank: in the order of ranks.
  virtual int num_answers(int64_t token) const = 0;
  virtual const std::byte* answer(int64_t token, int i) const = 0;
  // Ends the round. Every rank calls start_dispatch ... release for each, in the same order.
  void release();

 protected:
  // The parts of a round, in this order. send_rows sets taken_ and more_; receive_rows the
  // arrivals.
  virtual void send_rows(const Tokens& tokens) = 0;
  virtual void receive_rows() = 0;
  virtual void send_results() = 0;
  virtual void receive_results() = 0;
  virtual void end_round() {}
  // For destructors: the comm thread no longer uses this object after it.
  void abandon() noexcept;

  // The flight recorder has one record from start to finish of each half of a round.
  void enter(Operation operation, int64_t bytes) const;
  void pause() const { group_.communicator().pause_collective(); }
  void resume(Operation operation) const;
  void leave() const { group_.communicator().leave_collective(); }
  // Draw the arrows of a traced dispatch: rows that go to, have come from a group rank.
  void trace_sent(int peer, int64_t tokens, uint64_t bytes) const;
  void trace_received(int peer, int64_t tokens, uint64_t bytes) const;
  void check_tokens(const Tokens& tokens) const;
  int checked_rank_of(int32_t expert) const;  // the group rank that holds it
  uint64_t next_sequence();                   // of the group's collectives
  std::span<const int> peers() const { return group_.peer_order_; }
  std::span<const int> world_ranks() const { return group_.ranks_; }

  ProcessGroup& group_;
  const MoeExchangeShape shape_;
  const int local_experts_;
  const int first_expert_;
  const int ids_per_token_;  // experts of one rank that one token can choose

  uint64_t sequence_ = 0;  // of the round
  int64_t taken_ = 0;
  bool more_ = false;
  std::vector<Arrival> arrivals_;       // sorted by expert
  std::vector<int64_t> first_arrival_;  // [num_local_experts + 1]
  std::vector<int64_t> first_result_;   // [group size + 1]

 private:
  enum class Round { kIdle, kDispatching, kServing, kCombining, kAnswered };
  Round round_ = Round::kIdle;
  Tokens tokens_;     // of start_dispatch
  uint32_t job_ = 0;  // of the comm thread: the last half of a round
};

}  // namespace troupe::comm
