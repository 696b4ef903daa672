// model/weight_source.h: where the numbers of a tensor come from: a checkpoint, or a generator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "layers/packed_matrix.h"
#include "model/parallel_layout.h"
#include "model/safetensors.h"

namespace troupe::model {

enum class TensorKind {
  kLinear,       // a matrix, fp8 in a quantised checkpoint
  kHead,         // a matrix that is not: lm_head, eh_proj
  kUnquantized,  // a matrix that no weight format changes: the router's gate
  kEmbedding,    // a lookup table
  kNorm,         // a vector of scales
  kBias,         // offsets
  kScale,        // a positive number: what the codes of a KV cache are multiplied by
  // A matrix in 4-bit codes, "<name>_blocks", with a scale each 32, "<name>_scales"; or not
  // quantised, "<name>", where rows and columns of each expert are exchanged, as Hugging Face's
  // GptOssExperts keeps them.
  kMxfp4,
};

// A tensor that a model family needs, or rows of one that holds more (all experts in one).
struct TensorSpec {
  std::string name;
  TensorKind kind = TensorKind::kLinear;
  int64_t rows = 1;  // 1 for vectors
  int64_t cols = 0;
  // Of a tensor that holds more: row r is elements [s * cols, (s + 1) * cols) of it, row-major,
  // with s = first_row + r * row_step. stored_shape empty: the tensor is this matrix or vector.
  int64_t first_row = 0, row_step = 1;
  std::vector<int64_t> stored_shape = {};

  bool is_vector() const {
    return kind == TensorKind::kNorm || kind == TensorKind::kBias || kind == TensorKind::kScale;
  }
  int64_t stored_row(int64_t row) const { return first_row + row * row_step; }
  std::vector<int64_t> shape() const {
    if (!stored_shape.empty()) return stored_shape;
    return is_vector() ? std::vector{cols} : std::vector{rows, cols};
  }
};

// Memory for rows that do not lie ready; reused from call to call.
struct RowBuffer {
  std::vector<std::byte> data;
  std::vector<float> scales;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;

  virtual bool has(std::string_view name) const = 0;
  // UserError if what read() gave may have been changed under it.
  virtual void require_unchanged() const {}
  virtual size_t mapped_bytes() const { return 0; }  // address space that a rank's files take
  // The type in which read() gives it: kF32, kBf16 or, for matrices with their scales, kF8E4M3 or
  // kI8; an MXFP4 matrix is read as bf16, exactly. kF16 is read as fp32: no kernel takes it. Throws
  // UserError when the tensor is missing or has another shape or type.
  virtual Dtype type(const TensorSpec& tensor) const = 0;
  // Of a kMxfp4 tensor: whether it is quantised.
  virtual bool has_codes(const TensorSpec& tensor) const = 0;
  // Rows `rows` of it, of which the caller will read inputs `cols`: those are checked (a code or
  // scale that is no number is a UserError). Valid until `buffer` is used again.
  virtual layers::SourceRows read(const TensorSpec& tensor, Range rows, Range cols,
                                  RowBuffer& buffer) const = 0;
};

class CheckpointSource final : public WeightSource {
 public:
  explicit CheckpointSource(const std::filesystem::path& directory);

  bool has(std::string_view name) const override { return checkpoint_.find(name) != nullptr; }
  void require_unchanged() const override { checkpoint_.require_unchanged(); }
  size_t mapped_bytes() const override { return checkpoint_.mapped_bytes(); }
  Dtype type(const TensorSpec& tensor) const override;
  bool has_codes(const TensorSpec& tensor) const override;
  layers::SourceRows read(const TensorSpec& tensor, Range rows, Range cols,
                          RowBuffer& buffer) const override;

 private:
  const Tensor& scales_of(const TensorSpec& tensor) const;
  void require_mxfp4(const TensorSpec& tensor) const;
  layers::SourceRows read_mxfp4(const TensorSpec& tensor, Range rows, Range cols,
                                RowBuffer& buffer) const;
  layers::SourceRows read_exchanged(const TensorSpec& tensor, Range rows, RowBuffer& buffer) const;
  layers::SourceRows read_f16(const TensorSpec& tensor, Range rows, RowBuffer& buffer) const;
  layers::SourceRows read_plain(const TensorSpec& tensor, Range rows, RowBuffer& buffer) const;
  void read_int8_scales(const TensorSpec& tensor, Range rows, RowBuffer& buffer) const;
  void check_scale(const TensorSpec& tensor, const layers::SourceRows& source) const;
  void check_fp8(const TensorSpec& tensor, Range rows, Range cols,
                 const layers::SourceRows& source) const;

  std::string directory_;
  Checkpoint checkpoint_;
};

// The number of fp8 blocks that `size` rows or columns touch.
inline int64_t num_fp8_blocks(int64_t size) {
  return (size + layers::kFp8Block - 1) / layers::kFp8Block;
}

layers::SourceRows::Type source_type(Dtype dtype);  // kF32, kBf16, kF8E4M3, kI8; kF16: fp32

}  // namespace troupe::model
