#include "comm/double_routing.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"

namespace troupe::comm {
namespace {

std::byte* grown(std::vector<std::byte>& buffer, size_t bytes) {
  if (buffer.size() < bytes) buffer.resize(bytes);
  return buffer.data();
}

}  // namespace

DoubleRouting::DoubleRouting(ProcessGroup& group, const MoeExchangeShape& shape)
    : MoeExchange(group, shape),
      send_counts_(shape.num_experts),
      receive_counts_(shape.num_experts),
      sent_rows_(group.size()),
      received_rows_(group.size()),
      next_row_(shape.num_experts) {
  TROUPE_CHECK(shape.answer == Answer::kPerExpert);
}

void DoubleRouting::Split::set(std::span<const int64_t> rows, size_t row_bytes) {
  bytes.resize(rows.size());
  displs.resize(rows.size());
  int64_t total = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    bytes[r] = rows[r] * static_cast<int64_t>(row_bytes);
    displs[r] = total;
    total += bytes[r];
  }
}

void DoubleRouting::send_rows(const Tokens& tokens) {
  taken_ = std::min(tokens.count, shape_.max_tokens);
  more_ = taken_ < tokens.count;
  init_routing(tokens);
  exchange_counts();
  send_.set(sent_rows_, shape_.row_bytes);
  receive_.set(received_rows_, shape_.row_bytes);
  ++sequence_;
  for (const int peer : peers()) trace_sent(peer, sent_rows_[peer], send_.bytes[peer]);
  std::byte* gathered = grown(gathered_, receive_.displs.back() + receive_.bytes.back());
  pending_ = group_.start_all_to_all_v(
      {expanded_.data(), static_cast<size_t>(send_.displs.back() + send_.bytes.back())},
      {gathered, static_cast<size_t>(receive_.displs.back() + receive_.bytes.back())},
      {send_.bytes, send_.displs, receive_.bytes, receive_.displs});
}

// A counting sort by expert, stable in tokens.
void DoubleRouting::init_routing(const Tokens& tokens) {
  const int64_t pairs = taken_ * shape_.topk;
  std::fill(send_counts_.begin(), send_counts_.end(), Counts{.rows = 0, .more = more_});
  std::fill(sent_rows_.begin(), sent_rows_.end(), 0);
  for (int64_t i = 0; i < pairs; ++i) {
    ++sent_rows_[checked_rank_of(tokens.topk_ids[i])];
    ++send_counts_[tokens.topk_ids[i]].rows;
  }
  int64_t first = 0;
  for (int expert = 0; expert < shape_.num_experts; ++expert) {
    TROUPE_CHECK(send_counts_[expert].rows <= taken_, "a token names expert {} twice", expert);
    next_row_[expert] = first;
    first += send_counts_[expert].rows;
  }
  std::byte* expanded = grown(expanded_, pairs * shape_.row_bytes);
  expanded_row_.resize(std::max<size_t>(expanded_row_.size(), pairs));
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t row = next_row_[tokens.topk_ids[i]]++;
    expanded_row_[i] = static_cast<int32_t>(row);
    std::memcpy(expanded + row * shape_.row_bytes,
                tokens.rows + i / shape_.topk * tokens.row_stride, shape_.row_bytes);
  }
}

// Part r of the counts speaks of rank r's experts on the way out, of this rank's on the way in.
void DoubleRouting::exchange_counts() {
  group_.all_to_all(std::as_bytes(std::span(send_counts_)),
                    std::as_writable_bytes(std::span(receive_counts_)));
  for (int source = 0; source < group_.size(); ++source) {
    received_rows_[source] = 0;
    for (int e = 0; e < local_experts_; ++e) {
      const Counts counts = receive_counts_[source * local_experts_ + e];
      if (counts.rows < 0 || counts.rows > shape_.max_tokens)
        group_.communicator().fail(fmt::format("rank {} dispatches {} rows to one expert",
                                               group_.world_rank(source), counts.rows));
      received_rows_[source] += counts.rows;
      more_ |= counts.more != 0;
    }
    first_result_[source + 1] = first_result_[source] + received_rows_[source];
  }
}

void DoubleRouting::receive_rows() {
  pending_.wait();
  for (const int peer : peers()) trace_received(peer, received_rows_[peer], receive_.bytes[peer]);
  re_routing();
}

void DoubleRouting::re_routing() {
  std::fill(first_arrival_.begin(), first_arrival_.end(), 0);
  for (size_t i = 0; i < receive_counts_.size(); ++i)
    first_arrival_[i % local_experts_ + 1] += receive_counts_[i].rows;
  std::partial_sum(first_arrival_.begin(), first_arrival_.end(), first_arrival_.begin());
  const int64_t total = first_arrival_.back();
  std::copy(first_arrival_.begin(), first_arrival_.end() - 1, next_row_.begin());
  arrivals_.resize(std::max<size_t>(arrivals_.size(), total));
  permuted_row_.resize(std::max<size_t>(permuted_row_.size(), total));
  std::byte* permuted = grown(permuted_, total * shape_.row_bytes);
  grown(permuted_results_, total * shape_.result_bytes);
  int64_t from = 0;
  for (int source = 0; source < group_.size(); ++source)
    for (int e = 0; e < local_experts_; ++e)
      for (int i = 0; i < receive_counts_[source * local_experts_ + e].rows; ++i, ++from) {
        const int64_t to = next_row_[e]++;
        permuted_row_[from] = to;
        std::memcpy(permuted + to * shape_.row_bytes, gathered_.data() + from * shape_.row_bytes,
                    shape_.row_bytes);
        arrivals_[to] = {.row = permuted + to * shape_.row_bytes,
                         .source = source,
                         .result_slot = static_cast<int32_t>(from - first_result_[source])};
      }
}

std::byte* DoubleRouting::result_row(int source, int64_t result_slot) {
  const int64_t row = permuted_row_[first_result_[source] + result_slot];
  return permuted_results_.data() + row * shape_.result_bytes;
}

void DoubleRouting::send_results() {
  const int64_t total = total_arrivals();
  std::byte* gathered = grown(gathered_results_, total * shape_.result_bytes);
  for (int64_t row = 0; row < total; ++row)
    std::memcpy(gathered + row * shape_.result_bytes,
                permuted_results_.data() + permuted_row_[row] * shape_.result_bytes,
                shape_.result_bytes);
  send_.set(received_rows_, shape_.result_bytes);
  receive_.set(sent_rows_, shape_.result_bytes);
  const size_t expanded = receive_.displs.back() + receive_.bytes.back();
  pending_ = group_.start_all_to_all_v(
      {gathered, total * shape_.result_bytes}, {grown(expanded_results_, expanded), expanded},
      {send_.bytes, send_.displs, receive_.bytes, receive_.displs});
}

void DoubleRouting::receive_results() { pending_.wait(); }

int DoubleRouting::num_answers(int64_t) const { return shape_.topk; }

const std::byte* DoubleRouting::answer(int64_t token, int i) const {
  return expanded_results_.data() + expanded_row_[token * shape_.topk + i] * shape_.result_bytes;
}

}  // namespace troupe::comm
