// model/split.h: a checkpoint cut up for the ranks of one layout, offline.
//
//   DIR/config.json, tokenizer files   those of the checkpoint
//   DIR/rank_N/model.safetensors       what rank N reads when it loads, and nothing else
//   DIR/split.json                     the layout, and type and shape of every tensor; written last
//
// A piece is what one WeightSource::read() gives: rows in their stored type, "NAME[first row:rows:
// step,inputs begin:end]", with their scales, "...#scales". The same walk that loads asks for them
// again, so that a rank packs the same bytes as from the checkpoint itself.
#pragma once

#include <filesystem>
#include <functional>

#include "model/weight_source.h"
#include "model/weights.h"

namespace troupe::model {

struct SplitOptions {
  std::filesystem::path input, output;
  ParallelSizes sizes;
  WeightOptions weights;  // format and exact: they decide which inputs of a row are read
  std::function<void(size_t done, size_t total)> progress;  // pieces; may be empty
};

// Writes DIR `output`, which is created. One piece of about 1 MiB is in memory at a time, no rank's
// file appears before it is whole, and without split.json the directory is none. UserError where
// the input is wrong or the output exists.
void split_checkpoint(const SplitOptions& options);

bool is_split(const std::filesystem::path& directory);

// Reads such a directory.
class SplitSource final : public WeightSource {
 public:
  // UserError naming both layouts when DIR was made for another one. rank -1: for types alone.
  SplitSource(const std::filesystem::path& directory, const ParallelSizes& sizes,
              const WeightOptions& options, int rank);

  bool has(std::string_view name) const override;
  void require_unchanged() const override {
    if (file_ != nullptr) file_->require_unchanged();
  }
  size_t mapped_bytes() const override { return largest_file_; }
  Dtype type(const TensorSpec& tensor) const override;
  bool has_codes(const TensorSpec& tensor) const override;
  layers::SourceRows read(const TensorSpec& tensor, Range rows, Range cols,
                          RowBuffer& buffer) const override;

 private:
  struct Stored {
    Dtype dtype;
    std::vector<int64_t> shape;
  };
  const Tensor& piece(const std::string& name) const;
  const Stored& require(const std::string& name, const std::vector<int64_t>& shape) const;

  std::filesystem::path directory_;
  std::map<std::string, Stored, std::less<>> tensors_;  // of the whole checkpoint
  std::unique_ptr<SafetensorsFile> file_;               // this rank's
  size_t largest_file_ = 0;
};

}  // namespace troupe::model
