#include "actors/observation.h"

#include "actors/messages/message_generated.h"

namespace troupe::actors {

namespace {
constexpr size_t kPage = 4096;
constexpr int kLayerStages = 3;

bool has(uint8_t observe, msg::Observe bit) { return (observe & static_cast<uint8_t>(bit)) != 0; }

// Elements (4 bytes each) of the sections, in this order: logits, mtp_logits, router, layers.
size_t logits_elements(const ObservationShape& s) {
  return s.logits ? s.max_rows * s.vocab_size : 0;
}
size_t mtp_elements(const ObservationShape& s) {
  return s.mtp_logits ? s.max_rows * s.vocab_size : 0;
}
size_t router_elements(const ObservationShape& s) { return s.max_rows * s.topk; }  // one of the two
size_t routers_elements(const ObservationShape& s) {
  return s.router ? 2 * s.num_layers * router_elements(s) : 0;
}
size_t stage_elements(const ObservationShape& s) { return s.max_rows * s.hidden_size; }
size_t layers_elements(const ObservationShape& s) {
  return s.layers ? kLayerStages * s.num_layers * stage_elements(s) : 0;
}
}  // namespace

ObservationShape ObservationShape::of(uint8_t observe, int64_t max_rows,
                                      const model::ModelConfig& config) {
  return {.logits = has(observe, msg::Observe::Logits),
          .router = has(observe, msg::Observe::Router),
          .mtp_logits = has(observe, msg::Observe::MtpLogits),
          .layers = has(observe, msg::Observe::Layers),
          .max_rows = max_rows,
          .vocab_size = config.vocab_size,
          .hidden_size = config.hidden_size,
          .num_layers = config.num_hidden_layers + 1,
          .topk = config.gate.topk};
}

size_t ObservationShape::bytes() const {
  const size_t elements = logits_elements(*this) + mtp_elements(*this) + routers_elements(*this) +
                          layers_elements(*this);
  return (elements * sizeof(float) + kPage - 1) / kPage * kPage;
}

Matrix<float> Observation::logits() const {
  TROUPE_CHECK(shape_.logits);
  return {reinterpret_cast<float*>(section_), shape_.max_rows, shape_.vocab_size};
}

Matrix<float> Observation::mtp_logits() const {
  TROUPE_CHECK(shape_.mtp_logits);
  return {reinterpret_cast<float*>(section_) + logits_elements(shape_), shape_.max_rows,
          shape_.vocab_size};
}

Matrix<int32_t> Observation::router_ids(int layer) const {
  TROUPE_CHECK(shape_.router && layer >= 0 && layer < shape_.num_layers, "layer {}", layer);
  auto* first =
      reinterpret_cast<int32_t*>(section_) + logits_elements(shape_) + mtp_elements(shape_);
  return {first + 2 * layer * router_elements(shape_), shape_.max_rows, shape_.topk};
}

Matrix<float> Observation::router_weights(int layer) const {
  const Matrix<int32_t> ids = router_ids(layer);
  return {reinterpret_cast<float*>(ids.data) + router_elements(shape_), ids.rows, ids.cols};
}

Matrix<float> Observation::hidden(int layer, LayerStage after) const {
  TROUPE_CHECK(shape_.layers && layer >= 0 && layer < shape_.num_layers, "layer {}", layer);
  auto* first = reinterpret_cast<float*>(section_) + logits_elements(shape_) +
                mtp_elements(shape_) + routers_elements(shape_);
  const int index = layer * kLayerStages + static_cast<int>(after);
  return {first + index * stage_elements(shape_), shape_.max_rows, shape_.hidden_size};
}

}  // namespace troupe::actors
