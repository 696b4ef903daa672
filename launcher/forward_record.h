// launcher/forward_record.h: what every operation of a forward pass made, as one hash per token:
// two layouts agree bit by bit when their records do.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "actors/observation.h"
#include "model/model_config.h"

namespace troupe::launcher {

// A point of the forward pass that is compared.
struct Operation {
  enum class Kind { kInput, kAttention, kGate, kFeedForward, kLogits };  // input: the embedding
  Kind kind = Kind::kInput;
  int layer = 0;

  bool operator==(const Operation&) const = default;
};

// In the order of execution; the MTP layer's, at layer num_hidden_layers, come last.
std::vector<Operation> operations_of(const model::ModelConfig& model, bool with_mtp);

class ForwardRecord {
 public:
  enum class Keep { kHashes, kLogits };  // kLogits: also the main model's logits themselves

  // `tokens`: of each input.
  ForwardRecord(const model::ModelConfig& model, std::vector<Operation> operations,
                std::vector<int> tokens, Keep keep);

  // As SessionCallbacks::on_observed.
  void on_observed(int input, const actors::Observation& rows, int first_row, int first_position,
                   int count);

  const std::vector<Operation>& operations() const { return operations_; }
  int num_tokens() const { return num_tokens_; }
  // [num_tokens]: input after input.
  std::span<const uint64_t> hashes(size_t operation) const { return hashes_[operation]; }
  Matrix<const float> logits() const;  // [num_tokens, vocab]

 private:
  void record(size_t operation, const actors::Observation& rows, int row, int token);

  std::vector<Operation> operations_;
  int mtp_layer_;
  std::vector<int> first_tokens_;  // of each input
  int num_tokens_ = 0;
  std::vector<std::vector<uint64_t>> hashes_;  // [operations][num_tokens]
  int64_t vocab_size_;
  std::vector<float> logits_;  // [num_tokens, vocab], or nothing
};

// The first operation whose results are not the same bits.
struct Difference {
  Operation operation;
  int tokens = 0;  // how many differ
  int first_token = 0;

  bool operator==(const Difference&) const = default;
};
std::optional<Difference> first_difference(const ForwardRecord& a, const ForwardRecord& b);

}  // namespace troupe::launcher
