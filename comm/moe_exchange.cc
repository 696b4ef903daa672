#include "comm/moe_exchange.h"

#include <algorithm>

#include "base/error.h"

namespace troupe::comm {
namespace {

constexpr size_t kMaxRowBytes = size_t{1} << 32;  // keeps products of sizes far from overflow

int local_experts_of(const ProcessGroup& group, const MoeExchangeShape& shape) {
  TROUPE_CHECK(shape.num_experts > 0 && shape.num_experts % group.size() == 0,
               "{} experts on {} ranks", shape.num_experts, group.size());
  return shape.num_experts / group.size();
}

}  // namespace

MoeExchange::MoeExchange(ProcessGroup& group, const MoeExchangeShape& shape)
    : group_(group),
      shape_(shape),
      local_experts_(local_experts_of(group, shape)),
      first_expert_(group.rank() * local_experts_),
      ids_per_token_(std::min(shape.topk, local_experts_)),
      first_arrival_(local_experts_ + 1),
      first_result_(group.size() + 1) {
  TROUPE_CHECK(shape.topk > 0 && shape.topk <= shape.num_experts && shape.max_tokens > 0,
               "topk {} max_tokens {}", shape.topk, shape.max_tokens);
  TROUPE_CHECK(shape.row_bytes < kMaxRowBytes && shape.result_bytes < kMaxRowBytes, "{} and {}",
               shape.row_bytes, shape.result_bytes);
}

std::span<const MoeExchange::Arrival> MoeExchange::arrivals(int local_expert) const {
  TROUPE_CHECK(local_expert >= 0 && local_expert < local_experts_, "{}", local_expert);
  const int64_t first = first_arrival_[local_expert];
  return std::span(arrivals_).subspan(first, first_arrival_[local_expert + 1] - first);
}

MoeExchange::Tokens MoeExchange::Tokens::from(int64_t first, int topk) const {
  const auto choices = static_cast<size_t>(first * topk);
  return {.rows = rows + first * row_stride,
          .row_stride = row_stride,
          .count = count - first,
          .topk_ids = topk_ids.subspan(choices),
          .weights = weights.empty() ? weights : weights.subspan(choices)};
}

void MoeExchange::enter(Operation operation, int64_t bytes) const {
  group_.communicator().enter_collective(operation, group_.id(), sequence_,
                                         static_cast<uint64_t>(bytes));
}

void MoeExchange::resume(Operation operation) const {
  group_.communicator().resume_collective(operation, group_.id(), sequence_);
}

void MoeExchange::trace_sent(int peer, int64_t tokens, uint64_t bytes) const {
  Trace* trace = group_.communicator().trace();
  if (trace != nullptr && tokens > 0)
    trace->sent(group_.world_rank(peer), group_.id(), sequence_, tokens,
                static_cast<int64_t>(bytes));
}

void MoeExchange::trace_received(int peer, int64_t tokens, uint64_t bytes) const {
  Trace* trace = group_.communicator().trace();
  if (trace != nullptr && tokens > 0)
    trace->received(group_.world_rank(peer), group_.id(), sequence_, tokens,
                    static_cast<int64_t>(bytes));
}

uint64_t MoeExchange::next_sequence() { return group_.next_sequence_++; }

void MoeExchange::check_tokens(const Tokens& tokens) const {
  const auto pairs = static_cast<size_t>(tokens.count * shape_.topk);
  TROUPE_CHECK(tokens.count >= 0 && tokens.topk_ids.size() == pairs, "{} ids of {} tokens",
               tokens.topk_ids.size(), tokens.count);
  TROUPE_CHECK(shape_.answer == Answer::kPerExpert || tokens.weights.size() == pairs,
               "{} weights of {} tokens", tokens.weights.size(), tokens.count);
}

int MoeExchange::checked_rank_of(int32_t expert) const {
  TROUPE_CHECK(expert >= 0 && expert < shape_.num_experts, "expert {} of {}", expert,
               shape_.num_experts);
  return expert / local_experts_;
}

}  // namespace troupe::comm
