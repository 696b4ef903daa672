// model/inventory.h: what a model consists of: every tensor that its family needs, counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace troupe::model {

// Numbers that a tensor stands for, and bytes they take in the files, scales included.
struct TensorCount {
  int64_t tensors = 0, parameters = 0;
  size_t bytes = 0;

  void operator+=(const TensorCount& other) {
    tensors += other.tensors;
    parameters += other.parameters;
    bytes += other.bytes;
  }
};

struct Inventory {
  bool from_files = false;  // counted from safetensors headers; else from config.json alone
  TensorCount embedding;
  std::vector<TensorCount> layers;  // num_hidden_layers
  TensorCount head;                 // final norm and LM head; the head is none where it is tied
  TensorCount mtp;                  // of its own: copies of embedding and head are not counted
  TensorCount mtp_copies;           // those that the files hold
  TensorCount experts;              // routed ones of all layers, part of `layers`
  // By the name of the type in the files ("BF16", "F8_E4M3", "MXFP4", ...), scales with what they
  // scale. Of everything above.
  std::map<std::string, TensorCount> types;
  // What the files hold beyond that.
  TensorCount unused;
  std::string first_unused;

  TensorCount main() const;  // without the MTP module
  TensorCount all() const;
  // Parameters that one token meets in the main model: all but the embedding, of which it looks up
  // a row, and the experts that were not chosen. deepseek-ai/DeepSeek-V3, README_WEIGHTS.md, and
  // the model card of gpt-oss count so; Qwen's and DeepSeek-V2's figures include the embedding.
  int64_t active(const ModelConfig& config) const;
};

// Counts what lies in DIR (headers are read, no tensor), or what its config.json asks for where DIR
// has no safetensors files, or ones that can be checked only (ModelConfig::not_runnable). UserError
// as WeightLoader's where a tensor is missing or wrong.
Inventory take_inventory(const std::filesystem::path& directory, const ModelConfig& config);

// Whether DIR holds safetensors files under the names that are read.
bool has_checkpoint(const std::filesystem::path& directory);

}  // namespace troupe::model
