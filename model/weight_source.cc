#include "model/weight_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace troupe::model {

using layers::kFp8Block;
using layers::SourceRows;

SourceRows::Type source_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return SourceRows::Type::kF32;
    case Dtype::kBf16:
      return SourceRows::Type::kBf16;
    case Dtype::kF8E4M3:
      return SourceRows::Type::kFp8;
    default:
      break;
  }
  TROUPE_CHECK(false, "type {}", dtype_name(dtype));
}

CheckpointSource::CheckpointSource(const std::filesystem::path& directory)
    : directory_(directory.string()), checkpoint_(directory) {}

const Tensor& CheckpointSource::scales_of(const TensorSpec& tensor) const {
  const std::string name = tensor.name + "_scale_inv";
  const Tensor& scales =
      checkpoint_.require(name, {num_fp8_blocks(tensor.rows), num_fp8_blocks(tensor.cols)});
  if (scales.dtype != Dtype::kF32)
    throw_user_error("{}: tensor '{}' has type {}; scales must be F32", directory_, name,
                     dtype_name(scales.dtype));
  return scales;
}

Dtype CheckpointSource::type(const TensorSpec& tensor) const {
  const Dtype dtype = checkpoint_.require(tensor.name, tensor.shape()).dtype;
  const bool matrix = !tensor.is_vector() && tensor.kind != TensorKind::kEmbedding;
  if (dtype == Dtype::kF8E4M3 && matrix) {
    scales_of(tensor);
  } else if (dtype != Dtype::kF32 && dtype != Dtype::kBf16) {
    throw_user_error("{}: tensor '{}' has type {}; supported here: BF16, F32{}", directory_,
                     tensor.name, dtype_name(dtype), matrix ? ", F8_E4M3" : "");
  }
  return dtype;
}

SourceRows CheckpointSource::read(const TensorSpec& tensor, Range rows, Range cols,
                                  RowBuffer& buffer) const {
  const Tensor& stored = checkpoint_.require(tensor.name, tensor.shape());
  SourceRows source;
  source.type = source_type(stored.dtype);
  source.data = stored.data + rows.begin * tensor.cols * dtype_size(stored.dtype);
  source.row_stride = tensor.cols;
  source.first_row = rows.begin;
  if (stored.dtype == Dtype::kF8E4M3) {
    // Copied: nothing in the format aligns them. They are 1/4096 of what they scale.
    const Tensor& scales = scales_of(tensor);
    buffer.scales.resize(scales.bytes / sizeof(float));
    if (scales.bytes > 0) std::memcpy(buffer.scales.data(), scales.data, scales.bytes);
    source.scales = buffer.scales.data();
    source.scale_stride = num_fp8_blocks(tensor.cols);
    check_fp8(tensor, rows, cols, source);
  }
  return source;
}

void CheckpointSource::check_fp8(const TensorSpec& tensor, Range rows, Range cols,
                                 const SourceRows& source) const {
  constexpr float kLargestCode = 448;
  constexpr auto kIsNan = [](std::byte code) {
    return (code & std::byte{0x7f}) == std::byte{0x7f};
  };
  if (rows.size() == 0 || cols.size() == 0) return;
  for (int64_t i = rows.begin / kFp8Block; i <= (rows.end - 1) / kFp8Block; ++i) {
    for (int64_t j = cols.begin / kFp8Block; j <= (cols.end - 1) / kFp8Block; ++j) {
      const float scale = source.scales[i * source.scale_stride + j];
      if (!(scale > 0) || !std::isfinite(scale * kLargestCode))
        throw_user_error("{}: tensor '{}_scale_inv' holds {} at [{}, {}]; scales are positive",
                         directory_, tensor.name, scale, i, j);
    }
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const std::byte* begin = source.data + (row - rows.begin) * source.row_stride + cols.begin;
    const std::byte* end = begin + cols.size();
    bool any = false;  // without an early way out the compiler vectorises this
    for (const std::byte* code = begin; code < end; ++code) any |= kIsNan(*code);
    if (!any) continue;
    throw_user_error("{}: tensor '{}' holds a NaN at [{}, {}]", directory_, tensor.name, row,
                     cols.begin + (std::find_if(begin, end, kIsNan) - begin));
  }
}

}  // namespace troupe::model
