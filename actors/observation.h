// actors/observation.h: what a step shows of its inside (`troupe score --dump`, `troupe verify`),
// in shared memory.
//
// One section per rank, rows in the order of the step's tokens. Written by the rank during a step,
// read by the launcher between StepDone and the next plan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/matrix.h"
#include "model/model_config.h"

namespace troupe::actors {

// Where in a layer the residual stream is shown.
enum class LayerStage { kInput, kAttention, kFeedForward };  // input: of layer 0 and the MTP layer

struct ObservationShape {
  bool logits = false, router = false, mtp_logits = false, layers = false;
  int64_t max_rows = 0;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int num_layers = 0;  // with the MTP layer
  int topk = 0;

  static ObservationShape of(uint8_t observe, int64_t max_rows, const model::ModelConfig& config);
  size_t bytes() const;  // of one rank's section, a multiple of the page size; 0 when nothing is on
};

class Observation {
 public:
  Observation() = default;
  Observation(const ObservationShape& shape, std::byte* section)
      : shape_(shape), section_(section) {}

  bool has_router() const { return shape_.router; }
  bool has_layers() const { return shape_.layers; }
  Matrix<float> logits() const;                   // [max_rows, vocab]
  Matrix<float> mtp_logits() const;               // [max_rows, vocab]
  Matrix<int32_t> router_ids(int layer) const;    // [max_rows, topk], in order of selection
  Matrix<float> router_weights(int layer) const;  // [max_rows, topk]
  Matrix<float> hidden(int layer, LayerStage after) const;  // [max_rows, hidden]

 private:
  ObservationShape shape_;
  std::byte* section_ = nullptr;
};

}  // namespace troupe::actors
