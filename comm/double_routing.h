// comm/double_routing.h: dispatch/combine by sorting rows twice around plain all_to_all_v calls.
//
// The form that prefill uses on NPUs (cann-recipes-infer: npu_moe_init_routing, all_to_all with
// split sizes, npu_moe_re_routing, npu_moe_finalize_routing):
//
//   init_routing      a copy of each token's row for each of its experts, sorted by expert
//   all_to_all        how many rows go to each expert
//   all_to_all_v      the rows; they arrive sorted by source rank, then by expert
//   re_routing        sorts them by expert, then by source
//   experts
//   the inverse of re_routing, all_to_all_v back
//   finalize_routing  the caller weighs and adds: answer(token, i)
//
// A row moves once per expert and is copied again by each step, where FusedExchange copies it once
// per rank; but any number of tokens passes through windows of any size. It is the form users know,
// and the check on the fused one. Always Answer::kPerExpert; max_tokens bounds its memory: at worst
// (all tokens of all ranks choose experts of one) group.size() * max_tokens * ids_per_token rows of
// each kind there.
#pragma once

#include "comm/moe_exchange.h"

namespace troupe::comm {

class DoubleRouting final : public MoeExchange {
 public:
  DoubleRouting(ProcessGroup& group, const MoeExchangeShape& shape);
  ~DoubleRouting() override { abandon(); }

  using MoeExchange::result_row;
  std::byte* result_row(int source, int64_t result_slot) override;
  int num_answers(int64_t token) const override;
  const std::byte* answer(int64_t token, int i) const override;

 private:
  void send_rows(const Tokens& tokens) override;
  void receive_rows() override;
  void send_results() override;
  void receive_results() override;

  // What one rank tells another of one expert.
  struct Counts {
    int32_t rows = 0;
    int32_t more = 0;  // the sender has tokens left; the same for all experts
  };
  // Bytes and displacements of an all_to_all_v with these rows per rank.
  struct Split {
    std::vector<int64_t> bytes, displs;  // [group size]
    void set(std::span<const int64_t> rows, size_t row_bytes);
  };

  void init_routing(const Tokens& tokens);
  void exchange_counts();
  void re_routing();

  std::vector<Counts> send_counts_, receive_counts_;  // [num_experts], by destination or source
  std::vector<int64_t> sent_rows_, received_rows_;    // [group size]
  Split send_, receive_;
  std::vector<int64_t> next_row_;      // [num_experts] scratch of the sorts
  std::vector<int32_t> expanded_row_;  // [tokens, topk] where init_routing put it
  std::vector<int64_t> permuted_row_;  // [received rows] where re_routing put it
  // Rows, grown to the largest round, then reused.
  std::vector<std::byte> expanded_, gathered_, permuted_;
  std::vector<std::byte> permuted_results_, gathered_results_, expanded_results_;
  Pending pending_;
};

}  // namespace troupe::comm
