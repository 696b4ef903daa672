#include "launcher/forward_record.h"

#include <algorithm>
#include <cstring>

namespace troupe::launcher {

namespace {

constexpr uint64_t kFnvBasis = 0xcbf29ce484222325, kFnvPrime = 0x100000001b3;

// FNV-1a over 32-bit words: every step is a bijection, so rows that differ in one word never
// collide.
template <class T>
uint64_t hash_row(Matrix<T> rows, int row, uint64_t hash = kFnvBasis) {
  static_assert(sizeof(T) == sizeof(uint32_t));
  for (int64_t i = 0; i < rows.cols; ++i) {
    uint32_t word;
    std::memcpy(&word, rows.row(row) + i, sizeof(word));
    hash = (hash ^ word) * kFnvPrime;
  }
  return hash;
}

}  // namespace

std::vector<Operation> operations_of(const model::ModelConfig& model, bool with_mtp) {
  using enum Operation::Kind;
  std::vector<Operation> operations{{kInput, 0}};
  const auto add_layer = [&](int layer) {
    operations.push_back({kAttention, layer});
    if (model.is_moe_layer(layer)) operations.push_back({kGate, layer});
    operations.push_back({kFeedForward, layer});
  };
  const int mtp_layer = model.num_hidden_layers;
  for (int layer = 0; layer < mtp_layer; ++layer) add_layer(layer);
  operations.push_back({kLogits, mtp_layer - 1});
  if (!with_mtp) return operations;
  operations.push_back({kInput, mtp_layer});
  add_layer(mtp_layer);
  operations.push_back({kLogits, mtp_layer});
  return operations;
}

ForwardRecord::ForwardRecord(const model::ModelConfig& model, std::vector<Operation> operations,
                             std::vector<int> tokens, Keep keep)
    : operations_(std::move(operations)),
      mtp_layer_(model.num_hidden_layers),
      vocab_size_(model.vocab_size) {
  for (const int count : tokens) {
    first_tokens_.push_back(num_tokens_);
    num_tokens_ += count;
  }
  hashes_.assign(operations_.size(), std::vector<uint64_t>(num_tokens_));
  if (keep == Keep::kLogits) logits_.resize(num_tokens_ * vocab_size_);
}

void ForwardRecord::on_observed(int input, const actors::Observation& rows, int first_row,
                                int first_position, int count) {
  for (int i = 0; i < count; ++i) {
    const int token = first_tokens_[input] + first_position + i;
    for (size_t operation = 0; operation < operations_.size(); ++operation)
      record(operation, rows, first_row + i, token);
    if (!logits_.empty())
      std::memcpy(logits_.data() + token * vocab_size_, rows.logits().row(first_row + i),
                  vocab_size_ * sizeof(float));
  }
}

void ForwardRecord::record(size_t operation, const actors::Observation& rows, int row, int token) {
  using actors::LayerStage;
  const auto [kind, layer] = operations_[operation];
  uint64_t& hash = hashes_[operation][token];
  switch (kind) {
    case Operation::Kind::kInput:
      hash = hash_row(rows.hidden(layer, LayerStage::kInput), row);
      return;
    case Operation::Kind::kAttention:
      hash = hash_row(rows.hidden(layer, LayerStage::kAttention), row);
      return;
    case Operation::Kind::kGate:
      hash = hash_row(rows.router_weights(layer), row, hash_row(rows.router_ids(layer), row));
      return;
    case Operation::Kind::kFeedForward:
      hash = hash_row(rows.hidden(layer, LayerStage::kFeedForward), row);
      return;
    case Operation::Kind::kLogits:
      hash = hash_row(layer == mtp_layer_ ? rows.mtp_logits() : rows.logits(), row);
      return;
  }
}

Matrix<const float> ForwardRecord::logits() const {
  TROUPE_CHECK(!logits_.empty());
  return {logits_.data(), num_tokens_, vocab_size_};
}

std::optional<Difference> first_difference(const ForwardRecord& a, const ForwardRecord& b) {
  for (size_t operation = 0; operation < a.operations().size(); ++operation) {
    const auto left = a.hashes(operation), right = b.hashes(operation);
    Difference difference{.operation = a.operations()[operation]};
    for (int token = a.num_tokens() - 1; token >= 0; --token) {
      if (left[token] == right[token]) continue;
      ++difference.tokens;
      difference.first_token = token;
    }
    if (difference.tokens > 0) return difference;
  }
  return std::nullopt;
}

}  // namespace troupe::launcher
