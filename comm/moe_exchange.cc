#include "comm/moe_exchange.h"

#include <algorithm>

#include "base/error.h"
#include "comm/comm_thread.h"

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

// One half of a round, on the comm thread if there is one. Else it is done in two parts, between
// which the caller computes.
void MoeExchange::start_dispatch(const Tokens& tokens) {
  TROUPE_CHECK(round_ == Round::kIdle);
  check_tokens(tokens);
  round_ = Round::kDispatching;
  tokens_ = tokens;
  if (CommThread* thread = group_.communicator().comm_thread())
    job_ = thread->hand_over({[](void* object) {
                                auto* exchange = static_cast<MoeExchange*>(object);
                                exchange->send_rows(exchange->tokens_);
                                exchange->receive_rows();
                              },
                              this});
  else
    send_rows(tokens);
}

void MoeExchange::finish_dispatch() {
  TROUPE_CHECK(round_ == Round::kDispatching);
  Communicator& communicator = group_.communicator();
  if (communicator.comm_thread() != nullptr)
    communicator.wait_for_job(job_, Operation::kDispatch);
  else
    receive_rows();
  round_ = Round::kServing;
}

void MoeExchange::start_combine() {
  TROUPE_CHECK(round_ == Round::kServing);
  round_ = Round::kCombining;
  if (CommThread* thread = group_.communicator().comm_thread())
    job_ = thread->hand_over({[](void* object) {
                                auto* exchange = static_cast<MoeExchange*>(object);
                                exchange->send_results();
                                exchange->receive_results();
                              },
                              this});
  else
    send_results();
}

void MoeExchange::finish_combine() {
  TROUPE_CHECK(round_ == Round::kCombining);
  Communicator& communicator = group_.communicator();
  if (communicator.comm_thread() != nullptr)
    communicator.wait_for_job(job_, Operation::kCombine);
  else
    receive_results();
  round_ = Round::kAnswered;
}

void MoeExchange::release() {
  TROUPE_CHECK(round_ == Round::kAnswered);
  group_.communicator().wait_for_comm_thread();
  end_round();
  round_ = Round::kIdle;
}

void MoeExchange::abandon() noexcept {
  const bool is_under_way = round_ == Round::kDispatching || round_ == Round::kCombining;
  if (is_under_way && group_.communicator().comm_thread() != nullptr)
    group_.communicator().abandon_comm_thread();
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
