// comm/moe_exchange.h: MoE dispatch/combine, the pair of all-to-alls around the experts.
//
// A token's row travels once to each rank that holds any of its chosen experts, with the expert ids
// and where it came from; the expert rank reads rows straight from its windows; combine brings one
// row per (token, expert) back, and the caller weighs and adds them in expert order.
//
// One round: dispatch -> experts -> combine. A round carries at most max_tokens() tokens per rank,
// chosen so that even if all of them go to one rank everything fits one window slot in both
// directions: no count exchange, no chunking, no deadlock, nothing dropped. Every rank of the group
// runs the same number of rounds; one without tokens sends empty slots and still serves.
//
// A round owns the windows between the ranks of its group: collectives with any of them belong
// before start_dispatch (handles still in flight are completed there) or after release; those of
// groups that share no other rank with this one may run at any time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/memory.h"
#include "comm/process_group.h"

namespace troupe::comm {

struct MoeExchangeShape {
  int num_experts = 0;  // divisible by group.size(); rank r holds the r-th run of them
  int topk = 0;
  size_t row_bytes = 0;     // a token's payload on the way out: hidden * element size
  size_t result_bytes = 0;  // an expert's result row on the way back
  int64_t max_tokens = 0;   // wished tokens per rank and round (moe_chunk_max_len); may be lowered
};

class MoeExchange {
 public:
  // Throws UserError when one token does not fit a slot: names comm_buffer_mb, what it is and what
  // is needed ("NEEDED comm_buffer_mb: 24").
  MoeExchange(ProcessGroup& group, const MoeExchangeShape& shape);

  // Tokens per rank and round that always fit, however skewed; >= 1, the same on every rank.
  int64_t max_tokens() const { return max_tokens_; }
  int num_local_experts() const { return local_experts_; }
  int first_local_expert() const { return first_expert_; }

  // A row for a local expert. `row` points into a window (or into the caller's own rows, when the
  // token is local) and stays valid until combine() returns.
  struct Arrival {
    const std::byte* row = nullptr;
    int32_t source = 0;       // group rank that sent it
    int32_t result_slot = 0;  // which result row of that source answers it
  };

  // Starts sending: rows [tokens, row_bytes] contiguous with `row_stride` bytes between them,
  // topk_ids [tokens * topk] (distinct expert ids per token). Returns when all is on its way; the
  // rows must stay until combine() returns.
  void start_dispatch(const std::byte* rows, int64_t row_stride, int64_t tokens,
                      std::span<const int32_t> topk_ids);
  // Waits for every rank's slot. Then arrivals(e) lists the rows of local expert e, sorted by
  // source rank, then by token: an order that no timing changes.
  void finish_dispatch();
  std::span<const Arrival> arrivals(int local_expert) const;
  int64_t total_arrivals() const { return total_arrivals_; }

  // Where the result of one arrival must be written, result_bytes long: straight into the window of
  // the rank that sent the token (or into local memory). Valid between finish_dispatch and
  // start_combine.
  std::byte* result_row(const Arrival& arrival) const;

  // Sends the results (all must have been written), waits for those of this rank's own tokens.
  void start_combine();
  void finish_combine();
  // The result of this rank's token for its j-th chosen expert (the order of topk_ids).
  // Valid from finish_combine until release().
  const std::byte* result(int64_t token, int j) const;
  // Gives the windows back to the senders; ends the round. Collective order: every rank calls
  // start_dispatch ... release for each round, in the same order.
  void release();

 private:
  enum class Round { kIdle, kDispatching, kServing, kCombining, kAnswered };
  // What one source has dispatched to this rank. Its ids are checked and lie in ids_.
  struct Inbox {
    int64_t tokens = 0;
    int64_t results = 0;              // (token, expert) pairs, each answered by one result row
    const std::byte* rows = nullptr;  // [tokens, row_stride_], in the window
    std::byte* answers = nullptr;     // [results, result_stride_], where the result rows go
  };
  // What this rank dispatches to one expert rank.
  struct Outbox {
    int32_t* ids = nullptr;     // [tokens, ids_per_token_]
    std::byte* rows = nullptr;  // [tokens, row_stride_]; null for this rank: rows stay in place
    int64_t tokens = 0;
    int64_t results = 0;
    int64_t last_token = -1;  // the one packed last, and how many of its ids
    int64_t last_token_ids = 0;
    const std::byte* answers = nullptr;  // [results, result_stride_], where the results came to
  };
  // Where the result of (token, j) comes from.
  struct Place {
    int32_t expert_rank, result_slot;
  };

  int64_t tokens_that_fit() const;
  void enter(Operation operation);
  void take_windows();
  void pack_token(int64_t token, std::span<const int32_t> experts);
  void add_token(Outbox& outbox, int64_t token);
  void receive_dispatch(int source);
  void receive_own_tokens();
  void copy_ids(int source, const std::byte* ids);
  void sort_arrivals();
  const std::byte* arrived_row(int source, int64_t token) const;
  int32_t* ids_from(int source) { return ids_.data() + source * max_tokens_ * ids_per_token_; }
  Arena::Slot dispatch_header(uint64_t tokens, uint64_t results) const;
  Arena::Slot combine_header(uint64_t results) const;

  ProcessGroup& group_;
  MoeExchangeShape shape_;
  int64_t max_tokens_ = 0;
  int local_experts_ = 0;
  int first_expert_ = 0;
  int ids_per_token_ = 0;  // experts one rank may serve of one token
  size_t row_stride_ = 0;
  size_t result_stride_ = 0;
  size_t rows_offset_ = 0;  // in a dispatch payload

  Round round_ = Round::kIdle;
  uint64_t sequence_ = 0;
  const std::byte* rows_ = nullptr;
  int64_t rows_stride_ = 0;
  std::vector<Outbox> outboxes_;        // [group size]
  std::vector<Inbox> inboxes_;          // [group size]
  std::vector<Place> places_;           // [max_tokens, topk]
  std::vector<int32_t> local_tokens_;   // [max_tokens] tokens with experts here
  std::vector<int32_t> ids_;            // [group size, max_tokens, ids_per_token]
  std::vector<Arrival> arrivals_;       // sorted by expert
  std::vector<int64_t> first_arrival_;  // [num_local_experts + 1]
  std::vector<int64_t> next_arrival_;   // [num_local_experts] scratch of the sort
  int64_t total_arrivals_ = 0;
  Mapping local_results_;  // [max_tokens * ids_per_token, result_stride]
};

}  // namespace troupe::comm
