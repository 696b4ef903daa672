// A dispatch payload (ids of tokens that are not there are not written):
//
//   0             expert ids  [max_tokens, ids_per_token] int32, unused places of a token -1
//   rows_offset_  rows        [tokens, row_stride_]
//
// A combine payload: results [results, result_stride_], in the order of the ids that asked.
#include "comm/moe_exchange.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

constexpr int32_t kNoExpert = -1;
constexpr size_t kMaxRowBytes = size_t{1} << 32;  // keeps products of sizes far from overflow

size_t aligned(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

}  // namespace

MoeExchange::MoeExchange(ProcessGroup& group, const MoeExchangeShape& shape)
    : group_(group), shape_(shape) {
  const int size = group.size();
  TROUPE_CHECK(shape.num_experts > 0 && shape.num_experts % size == 0, "{} experts on {} ranks",
               shape.num_experts, size);
  TROUPE_CHECK(shape.topk > 0 && shape.topk <= shape.num_experts && shape.max_tokens > 0,
               "topk {} max_tokens {}", shape.topk, shape.max_tokens);
  TROUPE_CHECK(shape.row_bytes < kMaxRowBytes && shape.result_bytes < kMaxRowBytes, "{} and {}",
               shape.row_bytes, shape.result_bytes);
  local_experts_ = shape.num_experts / size;
  first_expert_ = group.rank() * local_experts_;
  ids_per_token_ = std::min(shape.topk, local_experts_);
  row_stride_ = aligned(shape.row_bytes);
  result_stride_ = aligned(shape.result_bytes);
  max_tokens_ = size == 1 ? shape.max_tokens : std::min(shape.max_tokens, tokens_that_fit());
  const size_t max_pairs = max_tokens_ * ids_per_token_;
  rows_offset_ = aligned(max_pairs * sizeof(int32_t));

  outboxes_.resize(size);
  inboxes_.resize(size);
  places_.resize(max_tokens_ * shape.topk);
  local_tokens_.resize(max_tokens_);
  ids_.resize(size * max_pairs);
  arrivals_.resize(size * max_pairs);
  first_arrival_.resize(local_experts_ + 1);
  next_arrival_.resize(local_experts_);
  local_results_ = Mapping::anonymous(max_pairs * result_stride_);
}

// Both payloads of that many tokens, all for one rank, fit a slot.
int64_t MoeExchange::tokens_that_fit() const {
  const ArenaShape& arena = group_.communicator().arena().shape();
  const auto needed = [&](size_t tokens) {
    const size_t pairs = tokens * ids_per_token_;
    return std::max(aligned(pairs * sizeof(int32_t)) + tokens * row_stride_,
                    pairs * result_stride_);
  };
  const size_t slot_bytes = arena.slot_bytes();
  const size_t bytes_per_token =
      std::max(row_stride_ + ids_per_token_ * sizeof(int32_t), ids_per_token_ * result_stride_);
  size_t tokens = slot_bytes / bytes_per_token;
  while (tokens > 0 && needed(tokens) > slot_bytes) --tokens;
  if (tokens == 0) {
    constexpr size_t kMiB = size_t{1} << 20;
    const size_t windows = needed(1) * kSlotsPerWindow * arena.world_size;
    throw_user_error(
        "runtime_config.comm_buffer_mb: {} MiB for {} ranks cannot carry one token of "
        "an MoE dispatch ({} bytes out, {} x {} back). NEEDED comm_buffer_mb: {}",
        arena.comm_buffer_bytes / kMiB, arena.world_size, shape_.row_bytes, ids_per_token_,
        shape_.result_bytes, (windows + kMiB - 1) / kMiB);
  }
  return static_cast<int64_t>(tokens);
}

Arena::Slot MoeExchange::dispatch_header(uint64_t tokens, uint64_t results) const {
  const uint64_t bytes = rows_offset_ + tokens * row_stride_;
  return {.operation = Operation::kDispatch,
          .group = group_.id(),
          .sequence = sequence_,
          .total_bytes = bytes,
          .chunk_bytes = bytes,
          .counts = {tokens, results}};
}

Arena::Slot MoeExchange::combine_header(uint64_t results) const {
  const uint64_t bytes = results * result_stride_;
  return {.operation = Operation::kCombine,
          .group = group_.id(),
          .sequence = sequence_,
          .total_bytes = bytes,
          .chunk_bytes = bytes,
          .counts = {results, 0}};
}

void MoeExchange::enter(Operation operation) {
  group_.communicator().enter_collective(operation, group_.id(), sequence_);
}

void MoeExchange::start_dispatch(const std::byte* rows, int64_t row_stride, int64_t tokens,
                                 std::span<const int32_t> topk_ids) {
  TROUPE_CHECK(round_ == Round::kIdle);
  TROUPE_CHECK(tokens >= 0 && tokens <= max_tokens_, "{} tokens of {}", tokens, max_tokens_);
  TROUPE_CHECK(static_cast<int64_t>(topk_ids.size()) == tokens * shape_.topk, "{} ids",
               topk_ids.size());
  round_ = Round::kDispatching;
  rows_ = rows;
  rows_stride_ = row_stride;
  sequence_ = group_.next_sequence_++;
  enter(Operation::kDispatch);
  take_windows();
  for (int64_t token = 0; token < tokens; ++token)
    pack_token(token, topk_ids.subspan(token * shape_.topk, shape_.topk));

  for (const int peer : group_.peer_order_) {
    const Outbox& outbox = outboxes_[peer];
    group_.communicator()
        .transfers()
        .to(group_.world_rank(peer))
        .publish(dispatch_header(outbox.tokens, outbox.results));
    group_.communicator().count_sent(outbox.tokens * shape_.row_bytes +
                                     outbox.tokens * ids_per_token_ * sizeof(int32_t));
  }
  group_.communicator().leave_collective();
}

// A free slot towards every peer.
void MoeExchange::take_windows() {
  TransferQueue& transfers = group_.communicator().transfers();
  transfers.take(group_.ranks_);
  for (const int peer : group_.peer_order_) {
    transfers.wait_for_room(group_.world_rank(peer));
    std::byte* payload = transfers.to(group_.world_rank(peer)).payload();
    outboxes_[peer] = {.ids = reinterpret_cast<int32_t*>(payload), .rows = payload + rows_offset_};
  }
  outboxes_[group_.rank()] = {.ids = ids_from(group_.rank())};
}

void MoeExchange::pack_token(int64_t token, std::span<const int32_t> experts) {
  for (size_t j = 0; j < experts.size(); ++j) {
    const int32_t expert = experts[j];
    TROUPE_CHECK(expert >= 0 && expert < shape_.num_experts, "expert {} of {}", expert,
                 shape_.num_experts);
    const int expert_rank = expert / local_experts_;
    Outbox& outbox = outboxes_[expert_rank];
    if (outbox.last_token != token) add_token(outbox, token);
    TROUPE_CHECK(outbox.last_token_ids < ids_per_token_, "token {} names an expert twice", token);
    outbox.ids[(outbox.tokens - 1) * ids_per_token_ + outbox.last_token_ids++] = expert;
    places_[token * shape_.topk + j] = {expert_rank, static_cast<int32_t>(outbox.results++)};
  }
}

void MoeExchange::add_token(Outbox& outbox, int64_t token) {
  if (outbox.rows == nullptr)
    local_tokens_[outbox.tokens] = static_cast<int32_t>(token);
  else
    std::memcpy(outbox.rows + outbox.tokens * row_stride_, rows_ + token * rows_stride_,
                shape_.row_bytes);
  std::fill_n(outbox.ids + outbox.tokens * ids_per_token_, ids_per_token_, kNoExpert);
  outbox.last_token = token;
  outbox.last_token_ids = 0;
  ++outbox.tokens;
}

void MoeExchange::finish_dispatch() {
  TROUPE_CHECK(round_ == Round::kDispatching);
  enter(Operation::kDispatch);
  for (const int peer : group_.peer_order_) receive_dispatch(peer);
  receive_own_tokens();
  sort_arrivals();
  round_ = Round::kServing;
  group_.communicator().leave_collective();
}

void MoeExchange::receive_dispatch(int source) {
  const int world_rank = group_.world_rank(source);
  TransferQueue& transfers = group_.communicator().transfers();
  transfers.wait_for_unread(world_rank, 1);
  const ReceiveChannel& channel = transfers.from(world_rank);
  const Arena::Slot got = channel.header(0);
  const uint64_t tokens = std::min<uint64_t>(got.counts[0], max_tokens_);
  const uint64_t results = std::min<uint64_t>(got.counts[1], tokens * ids_per_token_);
  channel.check(got, dispatch_header(tokens, results));
  // The source has finished everything before this round, so it has given all slots but this
  // rank's dispatch back.
  if (!transfers.to(world_rank).has_room())
    group_.communicator().fail(
        fmt::format("rank {} has dispatched without finishing what was before", world_rank));
  inboxes_[source] = {.tokens = static_cast<int64_t>(tokens),
                      .results = static_cast<int64_t>(results),
                      .rows = channel.payload(0) + rows_offset_,
                      .answers = transfers.to(world_rank).payload()};
  copy_ids(source, channel.payload(0));
}

void MoeExchange::receive_own_tokens() {
  const Outbox& outbox = outboxes_[group_.rank()];
  inboxes_[group_.rank()] = {
      .tokens = outbox.tokens, .results = outbox.results, .answers = local_results_.data()};
}

// Takes the ids out of shared memory before they are checked and used as indices.
void MoeExchange::copy_ids(int source, const std::byte* ids) {
  const int64_t count = inboxes_[source].tokens * ids_per_token_;
  int32_t* copied = ids_from(source);
  if (count > 0) std::memcpy(copied, ids, count * sizeof(int32_t));
  const auto is_local = [&](int32_t id) {
    return id >= first_expert_ && id < first_expert_ + local_experts_;
  };
  int64_t results = 0;
  for (int64_t i = 0; i < count; ++i) {
    results += copied[i] != kNoExpert;
    if (copied[i] != kNoExpert && !is_local(copied[i]))
      group_.communicator().fail(fmt::format("rank {} dispatches to expert {}, which is not here",
                                             group_.world_rank(source), copied[i]));
  }
  if (results != inboxes_[source].results)
    group_.communicator().fail(fmt::format("rank {} dispatches {} ids and says {}",
                                           group_.world_rank(source), results,
                                           inboxes_[source].results));
}

// A counting sort by expert, stable in (source, token).
void MoeExchange::sort_arrivals() {
  std::fill(first_arrival_.begin(), first_arrival_.end(), 0);
  const auto for_each_id = [&](auto&& visit) {
    for (int source = 0; source < group_.size(); ++source)
      for (int64_t i = 0; i < inboxes_[source].tokens * ids_per_token_; ++i)
        if (const int32_t id = ids_from(source)[i]; id != kNoExpert)
          visit(source, i / ids_per_token_, id - first_expert_);
  };
  for_each_id([&](int, int64_t, int expert) { ++first_arrival_[expert + 1]; });
  for (int expert = 0; expert < local_experts_; ++expert)
    first_arrival_[expert + 1] += first_arrival_[expert];
  total_arrivals_ = first_arrival_.back();

  std::copy(first_arrival_.begin(), first_arrival_.end() - 1, next_arrival_.begin());
  int last_source = -1;
  int32_t result_slot = 0;
  for_each_id([&](int source, int64_t token, int expert) {
    if (source != last_source) result_slot = 0;
    last_source = source;
    arrivals_[next_arrival_[expert]++] = {
        .row = arrived_row(source, token), .source = source, .result_slot = result_slot++};
  });
}

const std::byte* MoeExchange::arrived_row(int source, int64_t token) const {
  if (source == group_.rank()) return rows_ + local_tokens_[token] * rows_stride_;
  return inboxes_[source].rows + token * row_stride_;
}

std::span<const MoeExchange::Arrival> MoeExchange::arrivals(int local_expert) const {
  TROUPE_CHECK(local_expert >= 0 && local_expert < local_experts_, "{}", local_expert);
  const int64_t first = first_arrival_[local_expert];
  return std::span(arrivals_).subspan(first, first_arrival_[local_expert + 1] - first);
}

std::byte* MoeExchange::result_row(const Arrival& arrival) const {
  return inboxes_[arrival.source].answers + arrival.result_slot * result_stride_;
}

void MoeExchange::start_combine() {
  TROUPE_CHECK(round_ == Round::kServing);
  round_ = Round::kCombining;
  enter(Operation::kCombine);
  for (const int peer : group_.peer_order_) {
    const int64_t results = inboxes_[peer].results;
    group_.communicator().transfers().to(group_.world_rank(peer)).publish(combine_header(results));
    group_.communicator().count_sent(results * shape_.result_bytes);
  }
  group_.communicator().leave_collective();
}

// The dispatch of the same peer is still unread slot 0: release() gives both back.
void MoeExchange::finish_combine() {
  TROUPE_CHECK(round_ == Round::kCombining);
  enter(Operation::kCombine);
  TransferQueue& transfers = group_.communicator().transfers();
  for (const int peer : group_.peer_order_) {
    const int world_rank = group_.world_rank(peer);
    transfers.wait_for_unread(world_rank, 2);
    const ReceiveChannel& channel = transfers.from(world_rank);
    channel.check(channel.header(1), combine_header(outboxes_[peer].results));
    outboxes_[peer].answers = channel.payload(1);
  }
  outboxes_[group_.rank()].answers = local_results_.data();
  round_ = Round::kAnswered;
  group_.communicator().leave_collective();
}

const std::byte* MoeExchange::result(int64_t token, int j) const {
  const Place place = places_[token * shape_.topk + j];
  return outboxes_[place.expert_rank].answers + place.result_slot * result_stride_;
}

void MoeExchange::release() {
  TROUPE_CHECK(round_ == Round::kAnswered);
  TransferQueue& transfers = group_.communicator().transfers();
  for (const int peer : group_.peer_order_) transfers.from(group_.world_rank(peer)).consume(2);
  transfers.give_back(group_.ranks_);
  round_ = Round::kIdle;
}

}  // namespace troupe::comm
