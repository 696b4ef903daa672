// comm/fused_exchange.h: dispatch/combine in which each byte is copied once.
//
// A rank's windows at a peer are one piece of memory for the round, in which it asks and is
// answered:
//
//   0              the answer's header, written by the expert rank   )
//   64             records [tokens]: ids of the token's experts      ) written by the rank that
//   rows_offset_   rows [tokens, row_stride_]                        ) dispatches
//   ...            free
//   ... window     results, the last first, written by the expert rank (kPerExpert)
//
// With kPerRank a result takes the place of its row. The rank that dispatches knows how many
// results it asks for, so it takes as many tokens as fit with their results: an expert rank needs
// no room of its own and never waits for any, so nothing can deadlock, and no counts are exchanged.
// Experts read rows where they lie; the asking rank reads results where they lie. Own rows stay in
// place.
//
// Two hand-overs a round: `published` of the window says that a dispatch lies there; giving the
// slot back says that it is answered.
#pragma once

#include "base/memory.h"
#include "comm/moe_exchange.h"

namespace troupe::comm {

class FusedExchange final : public MoeExchange {
 public:
  // Throws UserError when one token and its results do not fit a window: names comm_buffer_mb, what
  // it is and what is needed ("NEEDED comm_buffer_mb: 24").
  FusedExchange(ProcessGroup& group, const MoeExchangeShape& shape);
  ~FusedExchange() override { abandon(); }

  // Tokens that any one other rank can get from this one in a round, at most; fewer if they choose
  // many experts there.
  int64_t max_tokens_to_a_rank() const { return max_tokens_to_a_rank_; }

  using MoeExchange::result_row;
  std::byte* result_row(int source, int64_t result_slot) override;
  int num_answers(int64_t token) const override;
  const std::byte* answer(int64_t token, int i) const override;

 private:
  void send_rows(const Tokens& tokens) override;
  void receive_rows() override;
  void send_results() override;
  void receive_results() override;
  void end_round() override;

  // What one source has dispatched to this rank. Its records are checked copies.
  struct Inbox {
    int64_t tokens = 0;
    int64_t results = 0;
    std::byte* window = nullptr;   // null for this rank
    std::byte* records = nullptr;  // [tokens, record_bytes_]
  };
  // What this rank dispatches to one expert rank.
  struct Outbox {
    std::byte* window = nullptr;   // null for this rank: rows stay in place
    std::byte* records = nullptr;  // [tokens, record_bytes_]
    int64_t tokens = 0;
    int64_t results = 0;
    int chosen = 0;  // experts of the token that is being packed
  };
  // Where an answer comes from.
  struct Place {
    int32_t expert_rank = -1, result_slot = 0;
  };

  size_t window_bytes_needed(int64_t tokens, int64_t results) const;
  void set_window_layout();
  void take_windows();
  bool fits(std::span<const int32_t> experts);
  void pack_token(const Tokens& tokens, int64_t token);
  void add_token(Outbox& outbox, const Tokens& tokens, int64_t token);
  void add_expert(Outbox& outbox, int32_t expert, float weight);
  void put(int peer);
  void receive(int source);
  void copy_records(int source);
  void sort_arrivals();
  template <class Visit>
  void for_each_arrival(const Visit& visit);
  const std::byte* arrived_row(int source, int64_t token) const;
  std::byte* result_place(std::byte* window, int64_t result_slot) const;
  Arena::Slot header(Operation operation, uint64_t tokens, uint64_t results) const;

  size_t window_bytes_ = 0;
  size_t record_bytes_ = 0;  // of a token: ids [ids_per_token], kPerRank weights [ids_per_token]
  size_t row_stride_ = 0;
  size_t result_stride_ = 0;
  int64_t max_tokens_to_a_rank_ = 0;
  size_t rows_offset_ = 0;
  size_t bytes_per_token_sent_ = 0;

  const std::byte* rows_ = nullptr;  // the caller's
  int64_t own_row_stride_ = 0;
  bool streaming_ = false;             // this round's rows go past the caches
  std::vector<Outbox> outboxes_;       // [group size]
  std::vector<Inbox> inboxes_;         // [group size]
  std::vector<Place> places_;          // [max_tokens, topk], kPerRank: until one with rank -1
  std::vector<int32_t> own_tokens_;    // [max_tokens] those with experts here
  std::vector<std::byte> records_;     // of all sources
  std::vector<int64_t> next_arrival_;  // [num_local_experts] scratch of the sort
  Mapping own_results_;                // of own tokens, [results, result_stride_]
};

}  // namespace troupe::comm
