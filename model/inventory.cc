#include "model/inventory.h"

#include <optional>
#include <set>

#include "base/error.h"
#include "model/family_weights.h"
#include "model/mxfp4.h"
#include "model/random_weights.h"

namespace troupe::model {
namespace {

constexpr const char* kMxfp4 = "MXFP4";

// Of a spec, all elements of its stored tensor.
int64_t stored_elements(const TensorSpec& tensor) {
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape()) elements *= dim;
  return elements;
}

// Remembers what a walk over a family's weights asks for.
class Recorder final : public WeightSource {
 public:
  Recorder(const WeightSource& source) : source_(source) {}

  bool has(std::string_view name) const override { return source_.has(name); }
  Dtype type(const TensorSpec& tensor) const override {
    specs_.emplace(tensor.name, tensor);
    return source_.type(tensor);
  }
  bool has_codes(const TensorSpec& tensor) const override { return source_.has_codes(tensor); }
  layers::SourceRows read(const TensorSpec& tensor, Range, Range, RowBuffer&) const override {
    TROUPE_CHECK(false, "a walk that measures has read '{}'", tensor.name);
  }
  const std::map<std::string, TensorSpec>& specs() const { return specs_; }

 private:
  const WeightSource& source_;
  mutable std::map<std::string, TensorSpec> specs_;  // each stored tensor once
};

// As published checkpoints are stored: fp8 or int8 linears with their scales, MXFP4 experts, the
// gate's bias in fp32, all else in bf16.
struct StoredType {
  std::string name;
  size_t bytes;
};

StoredType published_type(const TensorSpec& tensor, const ModelConfig& config) {
  const auto elements = static_cast<size_t>(stored_elements(tensor));
  if (tensor.kind == TensorKind::kMxfp4 && config.weight_bits == 4)
    return {kMxfp4, elements / kMxfp4Block * (kMxfp4BlockBytes + 1)};
  if (tensor.kind == TensorKind::kLinear && config.fp8_weights)
    return {"F8_E4M3", elements + sizeof(float) * static_cast<size_t>(num_fp8_blocks(tensor.rows) *
                                                                      num_fp8_blocks(tensor.cols))};
  if (tensor.kind == TensorKind::kLinear && config.int8_weights)
    return {"I8", elements + sizeof(float) * static_cast<size_t>(tensor.rows)};
  // Of groups of codes with scales between them, whose size the family does not know.
  if (tensor.kind == TensorKind::kLinear && !config.not_runnable.empty())
    return {"I4", elements / 2};
  if (tensor.kind == TensorKind::kScale || tensor.name.ends_with("e_score_correction_bias"))
    return {"F32", elements * sizeof(float)};
  return {"BF16", elements * dtype_size(Dtype::kBf16)};
}

class Counter {
 public:
  Counter(const ModelConfig& config, const Checkpoint* files) : config_(config), files_(files) {
    inventory_.from_files = files != nullptr;
    inventory_.layers.resize(config.num_hidden_layers);
  }

  void add(const TensorSpec& tensor) {
    const StoredType type = files_ == nullptr ? published_type(tensor, config_) : in_files(tensor);
    const TensorCount count{1, stored_elements(tensor), type.bytes};
    place_of(tensor) += count;
    inventory_.types[type.name] += count;
    if (tensor.name.find(".experts.") != tensor.name.npos && layer_of(tensor.name) < num_layers())
      inventory_.experts += count;
  }

  Inventory finish() {
    if (files_ == nullptr) return std::move(inventory_);
    for (const auto& [name, tensor] : files_->tensors()) {
      if (seen_.contains(name)) continue;
      if (inventory_.unused.tensors == 0) inventory_.first_unused = name;
      inventory_.unused += {1, 0, tensor->bytes};
    }
    return std::move(inventory_);
  }

 private:
  int num_layers() const { return config_.num_hidden_layers; }

  // -1 for a tensor outside the layers.
  static int layer_of(const std::string& name) {
    constexpr std::string_view kPrefix = "model.layers.";
    return name.starts_with(kPrefix) ? std::stoi(name.substr(kPrefix.size())) : -1;
  }

  TensorCount& place_of(const TensorSpec& tensor) {
    const int layer = layer_of(tensor.name);
    if (layer >= 0 && layer < num_layers()) return inventory_.layers[layer];
    const bool copy =
        tensor.kind == TensorKind::kEmbedding || tensor.name.ends_with("shared_head.head.weight");
    if (layer >= 0) return copy ? inventory_.mtp_copies : inventory_.mtp;
    return tensor.kind == TensorKind::kEmbedding ? inventory_.embedding : inventory_.head;
  }

  StoredType in_files(const TensorSpec& tensor) {
    const bool mxfp4 = tensor.kind == TensorKind::kMxfp4 && !files_->find(tensor.name);
    StoredType type{kMxfp4, 0};
    for (const char* ending : {"", "_blocks", "_scales", "_scale", "_scale_inv"}) {
      const Tensor* found = files_->find(tensor.name + ending);
      if (found == nullptr) continue;
      if (!mxfp4 && *ending == '\0') type.name = dtype_name(found->dtype);
      type.bytes += found->bytes;
      seen_.insert(tensor.name + ending);
    }
    return type;
  }

  const ModelConfig& config_;
  const Checkpoint* files_;
  Inventory inventory_;
  std::set<std::string> seen_;
};

}  // namespace

TensorCount Inventory::main() const {
  TensorCount sum = embedding;
  for (const TensorCount& layer : layers) sum += layer;
  sum += head;
  return sum;
}

TensorCount Inventory::all() const {
  TensorCount sum = main();
  sum += mtp;
  sum += mtp_copies;
  return sum;
}

int64_t Inventory::active(const ModelConfig& config) const {
  // A tied embedding is the head, too.
  const int64_t looked_up = config.tie_word_embeddings ? 0 : embedding.parameters;
  const int64_t resting = config.n_routed_experts == 0
                              ? 0
                              : experts.parameters / config.n_routed_experts *
                                    (config.n_routed_experts - config.gate.topk);
  return main().parameters - looked_up - resting;
}

bool has_checkpoint(const std::filesystem::path& directory) {
  return std::filesystem::exists(directory / "model.safetensors.index.json") ||
         std::filesystem::exists(directory / "model.safetensors");
}

Inventory take_inventory(const std::filesystem::path& directory, const ModelConfig& config) {
  const bool from_files = has_checkpoint(directory) && config.not_runnable.empty();
  std::unique_ptr<WeightSource> source;
  std::optional<Checkpoint> files;
  if (from_files) {
    files.emplace(directory);
    source = std::make_unique<CheckpointSource>(directory);
  } else {
    source = std::make_unique<RandomSource>(0, config.fp8_weights);
  }
  const Recorder recorder(*source);
  const WeightOptions as_stored;
  WeightBuilder builder(recorder, as_stored, 1, 0);
  build_weights(config, ParallelLayout({}, config), config.num_nextn_predict_layers > 0, builder);
  Counter counter(config, files ? &*files : nullptr);
  for (const auto& [name, tensor] : recorder.specs()) counter.add(tensor);
  return counter.finish();
}

}  // namespace troupe::model
