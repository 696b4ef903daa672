#include "comm/fused_exchange.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/copy.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

constexpr int32_t kNoExpert = -1;
constexpr int kNobody = -1;
constexpr size_t kRecordsOffset = sizeof(Arena::Slot);  // behind the answer's header
constexpr uint32_t kLastTokens = 0, kMoreTokens = 1;    // phase of a dispatch's header

size_t aligned(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

}  // namespace

FusedExchange::FusedExchange(ProcessGroup& group, const MoeExchangeShape& shape)
    : MoeExchange(group, shape) {
  const int size = group.size();
  const bool weighed = shape.answer == Answer::kPerRank;
  record_bytes_ = ids_per_token_ * (sizeof(int32_t) + (weighed ? sizeof(float) : 0));
  row_stride_ = aligned(shape.row_bytes);
  result_stride_ = aligned(shape.result_bytes);
  if (weighed) row_stride_ = result_stride_ = std::max(row_stride_, result_stride_);
  bytes_per_token_sent_ = shape.row_bytes + record_bytes_;
  if (size > 1) set_window_layout();

  const int64_t remote = (size - 1) * max_tokens_to_a_rank_;
  outboxes_.resize(size);
  inboxes_.resize(size);
  places_.resize(shape.max_tokens * shape.topk);
  own_tokens_.resize(shape.max_tokens);
  records_.resize((remote + shape.max_tokens) * record_bytes_);
  std::byte* records = records_.data();
  for (int source = 0; source < size; ++source) {
    inboxes_[source].records = records;
    records += (source == group.rank() ? shape.max_tokens : max_tokens_to_a_rank_) * record_bytes_;
  }
  arrivals_.resize((remote + shape.max_tokens) * ids_per_token_);
  next_arrival_.resize(local_experts_);
  const int results_per_token = weighed ? 1 : ids_per_token_;
  own_results_ = Mapping::anonymous(shape.max_tokens * results_per_token * result_stride_);
}

size_t FusedExchange::window_bytes_needed(int64_t tokens, int64_t results) const {
  const bool in_place = shape_.answer == Answer::kPerRank;
  return rows_offset_ + tokens * row_stride_ + (in_place ? 0 : results * result_stride_);
}

// Room for as many records as there can be tokens with one result each.
void FusedExchange::set_window_layout() {
  const ArenaShape& arena = group_.communicator().arena().shape();
  window_bytes_ = arena.window_bytes();
  const auto lay_out = [&](int64_t tokens) {
    max_tokens_to_a_rank_ = tokens;
    rows_offset_ = kRecordsOffset + aligned(tokens * record_bytes_);
  };
  lay_out(0);
  const size_t per_token = window_bytes_needed(1, 1) - kRecordsOffset + record_bytes_;
  const auto fitting = static_cast<int64_t>((window_bytes_ - kRecordsOffset) / per_token);
  lay_out(std::clamp<int64_t>(fitting, 1, shape_.max_tokens));
  while (max_tokens_to_a_rank_ > 1 && window_bytes_needed(1, ids_per_token_) > window_bytes_)
    lay_out(max_tokens_to_a_rank_ - 1);
  const size_t needed = window_bytes_needed(1, ids_per_token_);
  if (needed <= window_bytes_) return;
  constexpr size_t kMiB = size_t{1} << 20;
  throw_user_error(
      "runtime_config.comm_buffer_mb: {} MiB for {} ranks cannot carry one token of an MoE "
      "dispatch "
      "({} bytes out, {} x {} back). NEEDED comm_buffer_mb: {}",
      arena.comm_buffer_bytes / kMiB, arena.world_size, shape_.row_bytes,
      shape_.answer == Answer::kPerRank ? 1 : ids_per_token_, shape_.result_bytes,
      ((needed + kSlotsPerWindow * kCacheLine) * arena.world_size + kMiB - 1) / kMiB);
}

Arena::Slot FusedExchange::header(Operation operation, uint64_t tokens, uint64_t results) const {
  const uint64_t bytes = operation == Operation::kDispatch ? tokens * bytes_per_token_sent_
                                                           : results * shape_.result_bytes;
  return {.operation = operation,
          .group = group_.id(),
          .sequence = sequence_,
          .total_bytes = bytes,
          .chunk_bytes = bytes,
          .counts = {tokens, results}};
}

void FusedExchange::send_rows(const Tokens& tokens) {
  rows_ = tokens.rows;
  own_row_stride_ = tokens.row_stride;
  sequence_ = next_sequence();
  enter(Operation::kDispatch,
        std::min(tokens.count, shape_.max_tokens) * static_cast<int64_t>(shape_.row_bytes));
  take_windows();
  const int64_t most = std::min(tokens.count, shape_.max_tokens);
  // The rows that all ranks send, if all send as many and each to as many ranks as it can.
  streaming_ = exceeds_caches(most * shape_.row_bytes * std::min(shape_.topk, group_.size()) *
                              group_.size());
  taken_ = 0;
  while (taken_ < most && fits(tokens.topk_ids.subspan(taken_ * shape_.topk, shape_.topk)))
    pack_token(tokens, taken_++);
  if (streaming_) finish_streaming();
  more_ = taken_ < tokens.count;
  if (!group_.communicator().must(Misdeed::kSkipCollective))
    for (const int peer : peers()) put(peer);
  Communicator::publication_fence();
  for (const int peer : peers()) group_.communicator().ring(group_.world_rank(peer));
  pause();
}

// Everything towards the peers has been read, so the windows are free from end to end.
void FusedExchange::take_windows() {
  TransferQueue& transfers = group_.communicator().transfers();
  transfers.take(world_ranks());
  for (const int peer : peers()) {
    transfers.wait_until_read(group_.world_rank(peer));
    std::byte* window = transfers.to(group_.world_rank(peer)).window();
    outboxes_[peer] = {.window = window, .records = window + kRecordsOffset};
  }
  outboxes_[group_.rank()] = {.records = inboxes_[group_.rank()].records};
}

// Whether every rank that holds one of these experts has room for the token and its results; counts
// them for pack_token.
bool FusedExchange::fits(std::span<const int32_t> experts) {
  for (Outbox& outbox : outboxes_) outbox.chosen = 0;
  for (const int32_t expert : experts) ++outboxes_[checked_rank_of(expert)].chosen;
  return std::all_of(outboxes_.begin(), outboxes_.end(), [&](const Outbox& outbox) {
    TROUPE_CHECK(outbox.chosen <= ids_per_token_, "a token names an expert twice");
    if (outbox.chosen == 0 || outbox.window == nullptr) return true;
    return outbox.tokens < max_tokens_to_a_rank_ &&
           window_bytes_needed(outbox.tokens + 1, outbox.results + outbox.chosen) <= window_bytes_;
  });
}

void FusedExchange::pack_token(const Tokens& tokens, int64_t token) {
  const bool per_rank = shape_.answer == Answer::kPerRank;
  Place* places = places_.data() + token * shape_.topk;
  Place* const end = places + shape_.topk;
  for (int rank = 0; rank < group_.size(); ++rank) {
    if (outboxes_[rank].chosen == 0) continue;
    add_token(outboxes_[rank], tokens, token);
    if (per_rank) *places++ = {rank, static_cast<int32_t>(outboxes_[rank].results++)};
  }
  if (per_rank && places != end) *places = {kNobody, 0};
  for (int j = 0; j < shape_.topk; ++j) {
    const int32_t expert = tokens.topk_ids[token * shape_.topk + j];
    const int rank = expert / local_experts_;
    add_expert(outboxes_[rank], expert, per_rank ? tokens.weights[token * shape_.topk + j] : 0);
    if (!per_rank) *places++ = {rank, static_cast<int32_t>(outboxes_[rank].results++)};
  }
}

// Its row, and an empty record.
void FusedExchange::add_token(Outbox& outbox, const Tokens& tokens, int64_t token) {
  const std::byte* row = tokens.rows + token * tokens.row_stride;
  if (outbox.window == nullptr)
    own_tokens_[outbox.tokens] = static_cast<int32_t>(token);
  else if (streaming_)
    stream_bytes(outbox.window + rows_offset_ + outbox.tokens * row_stride_, row, shape_.row_bytes);
  else
    std::memcpy(outbox.window + rows_offset_ + outbox.tokens * row_stride_, row, shape_.row_bytes);
  auto* ids = reinterpret_cast<int32_t*>(outbox.records + outbox.tokens * record_bytes_);
  std::fill_n(ids, ids_per_token_, kNoExpert);
  ++outbox.tokens;
}

// To the record of the outbox's last token.
void FusedExchange::add_expert(Outbox& outbox, int32_t expert, float weight) {
  std::byte* record = outbox.records + (outbox.tokens - 1) * record_bytes_;
  auto* ids = reinterpret_cast<int32_t*>(record);
  int i = 0;
  while (ids[i] != kNoExpert) {
    TROUPE_CHECK(ids[i] != expert, "a token names expert {} twice", expert);
    ++i;
  }
  ids[i] = expert;
  if (shape_.answer == Answer::kPerRank)
    reinterpret_cast<float*>(record)[ids_per_token_ + i] = weight;
}

void FusedExchange::put(int peer) {
  const Outbox& outbox = outboxes_[peer];
  Arena::Slot slot = header(Operation::kDispatch, outbox.tokens, outbox.results);
  slot.phase = more_ ? kMoreTokens : kLastTokens;
  trace_sent(peer, outbox.tokens, slot.chunk_bytes);  // first: an arrow points forward in time
  group_.communicator().transfers().to(group_.world_rank(peer)).put(slot);
  group_.communicator().count_sent(group_.world_rank(peer), slot.chunk_bytes);
}

void FusedExchange::receive_rows() {
  resume(Operation::kDispatch);
  for (const int peer : peers()) receive(peer);
  const Outbox& own = outboxes_[group_.rank()];
  inboxes_[group_.rank()].tokens = own.tokens;
  inboxes_[group_.rank()].results = own.results;
  sort_arrivals();
  for (int source = 0; source < group_.size(); ++source)
    first_result_[source + 1] = first_result_[source] + inboxes_[source].results;
  leave();
}

void FusedExchange::receive(int source) {
  const int world_rank = group_.world_rank(source);
  TransferQueue& transfers = group_.communicator().transfers();
  transfers.wait_for_unread(world_rank, 1);
  const ReceiveChannel& channel = transfers.from(world_rank);
  const Arena::Slot got = channel.header(0);
  const uint64_t tokens = std::min<uint64_t>(got.counts[0], max_tokens_to_a_rank_);
  const uint64_t most = shape_.answer == Answer::kPerRank ? tokens : tokens * ids_per_token_;
  const uint64_t results = std::min<uint64_t>(got.counts[1], most);
  Arena::Slot expected = header(Operation::kDispatch, tokens, results);
  expected.phase = std::min(got.phase, kMoreTokens);
  channel.check(got, expected);
  if (window_bytes_needed(static_cast<int64_t>(tokens), static_cast<int64_t>(results)) >
      window_bytes_)
    group_.communicator().fail(
        fmt::format("rank {} dispatches {} tokens with {} results, which do not fit the window",
                    world_rank, tokens, results));
  more_ |= got.phase == kMoreTokens;
  Inbox& inbox = inboxes_[source];
  inbox.tokens = static_cast<int64_t>(tokens);
  inbox.results = static_cast<int64_t>(results);
  inbox.window = channel.window();
  trace_received(source, inbox.tokens, got.chunk_bytes);
  copy_records(source);
}

// Takes the ids out of shared memory before they are checked and used as indices.
void FusedExchange::copy_records(int source) {
  const Inbox& inbox = inboxes_[source];
  std::copy_n(inbox.window + kRecordsOffset, inbox.tokens * record_bytes_, inbox.records);
  int64_t results = 0;
  for (int64_t token = 0; token < inbox.tokens; ++token) {
    const auto* ids = reinterpret_cast<const int32_t*>(inbox.records + token * record_bytes_);
    int chosen = 0;
    for (; chosen < ids_per_token_ && ids[chosen] != kNoExpert; ++chosen)
      if (ids[chosen] < first_expert_ || ids[chosen] >= first_expert_ + local_experts_)
        group_.communicator().fail(fmt::format("rank {} dispatches to expert {}, which is not here",
                                               group_.world_rank(source), ids[chosen]));
    results += shape_.answer == Answer::kPerRank ? std::min(chosen, 1) : chosen;
  }
  if (results != inbox.results)
    group_.communicator().fail(fmt::format("rank {} dispatches {} ids and says {}",
                                           group_.world_rank(source), results, inbox.results));
}

template <class Visit>
void FusedExchange::for_each_arrival(const Visit& visit) {
  for (int source = 0; source < group_.size(); ++source) {
    const Inbox& inbox = inboxes_[source];
    for (int64_t token = 0; token < inbox.tokens; ++token) {
      const std::byte* record = inbox.records + token * record_bytes_;
      const auto* ids = reinterpret_cast<const int32_t*>(record);
      const auto* weights = reinterpret_cast<const float*>(record) + ids_per_token_;
      for (int i = 0; i < ids_per_token_ && ids[i] != kNoExpert; ++i)
        visit(source, token, ids[i] - first_expert_, weights + i);
    }
  }
}

// A counting sort by expert, stable in (source, token).
void FusedExchange::sort_arrivals() {
  std::fill(first_arrival_.begin(), first_arrival_.end(), 0);
  for_each_arrival([&](int, int64_t, int expert, const float*) { ++first_arrival_[expert + 1]; });
  for (int expert = 0; expert < local_experts_; ++expert)
    first_arrival_[expert + 1] += first_arrival_[expert];

  std::copy(first_arrival_.begin(), first_arrival_.end() - 1, next_arrival_.begin());
  const bool per_rank = shape_.answer == Answer::kPerRank;
  int last_source = kNobody;
  int32_t result_slot = 0;
  for_each_arrival([&](int source, int64_t token, int expert, const float* weight) {
    if (source != last_source) result_slot = 0;
    last_source = source;
    arrivals_[next_arrival_[expert]++] = {
        .row = arrived_row(source, token),
        .weight = per_rank ? *weight : 0,
        .source = source,
        .result_slot = per_rank ? static_cast<int32_t>(token) : result_slot++};
  });
}

const std::byte* FusedExchange::arrived_row(int source, int64_t token) const {
  if (source == group_.rank()) return rows_ + own_tokens_[token] * own_row_stride_;
  return inboxes_[source].window + rows_offset_ + token * row_stride_;
}

std::byte* FusedExchange::result_place(std::byte* window, int64_t result_slot) const {
  if (window == nullptr) return own_results_.data() + result_slot * result_stride_;
  if (shape_.answer == Answer::kPerRank) return window + rows_offset_ + result_slot * row_stride_;
  return window + window_bytes_ - (result_slot + 1) * result_stride_;
}

std::byte* FusedExchange::result_row(int source, int64_t result_slot) {
  return result_place(inboxes_[source].window, result_slot);
}

void FusedExchange::send_results() {
  enter(Operation::kCombine, first_result_.back() * static_cast<int64_t>(shape_.result_bytes));
  Communicator& communicator = group_.communicator();
  const bool says_nothing = communicator.must(Misdeed::kSkipCollective);
  for (const int peer : peers()) {
    if (says_nothing) break;
    const Inbox& inbox = inboxes_[peer];
    Arena::Slot answer = header(Operation::kCombine, inbox.tokens, inbox.results);
    if (communicator.must(Misdeed::kSpoilHeader)) ++answer.total_bytes;
    std::memcpy(inbox.window, &answer, sizeof(answer));
    communicator.transfers().from(group_.world_rank(peer)).give_back(1);
    communicator.count_sent(group_.world_rank(peer), answer.chunk_bytes);
  }
  Communicator::publication_fence();
  for (const int peer : peers()) communicator.ring(group_.world_rank(peer));
  pause();
}

void FusedExchange::receive_results() {
  resume(Operation::kCombine);
  TransferQueue& transfers = group_.communicator().transfers();
  for (const int peer : peers()) {
    const int world_rank = group_.world_rank(peer);
    const Outbox& outbox = outboxes_[peer];
    transfers.wait_until_read(world_rank);
    Arena::Slot got;
    std::memcpy(&got, outbox.window, sizeof(got));
    transfers.from(world_rank)
        .check(got, header(Operation::kCombine, outbox.tokens, outbox.results));
  }
  leave();
}

int FusedExchange::num_answers(int64_t token) const {
  if (shape_.answer == Answer::kPerExpert) return shape_.topk;
  const Place* places = places_.data() + token * shape_.topk;
  int count = 0;
  while (count < shape_.topk && places[count].expert_rank != kNobody) ++count;
  return count;
}

const std::byte* FusedExchange::answer(int64_t token, int i) const {
  const Place place = places_[token * shape_.topk + i];
  return result_place(outboxes_[place.expert_rank].window, place.result_slot);
}

void FusedExchange::end_round() { group_.communicator().transfers().give_back(world_ranks()); }

}  // namespace troupe::comm
