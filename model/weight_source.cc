#include "model/weight_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "model/mxfp4.h"

namespace troupe::model {

using layers::kFp8Block;
using layers::SourceRows;

SourceRows::Type source_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
    case Dtype::kF16:
      return SourceRows::Type::kF32;
    case Dtype::kBf16:
      return SourceRows::Type::kBf16;
    case Dtype::kF8E4M3:
      return SourceRows::Type::kFp8;
    case Dtype::kI8:
      return SourceRows::Type::kInt8;
    default:
      break;
  }
  TROUPE_CHECK(false, "type {}", dtype_name(dtype));
}

CheckpointSource::CheckpointSource(const std::filesystem::path& directory)
    : directory_(directory.string()), checkpoint_(directory) {}

const Tensor& CheckpointSource::scales_of(const TensorSpec& tensor) const {
  if (checkpoint_.require(tensor.name, tensor.shape()).dtype == Dtype::kI8) {
    const std::string name = tensor.name + "_scale";
    const Tensor& scales = checkpoint_.require(name, {tensor.rows, 1});
    if (scales.dtype != Dtype::kF32 && scales.dtype != Dtype::kBf16)
      throw_user_error("{}: tensor '{}' has type {}; scales must be F32 or BF16", directory_, name,
                       dtype_name(scales.dtype));
    return scales;
  }
  const std::string name = tensor.name + "_scale_inv";
  const Tensor& scales =
      checkpoint_.require(name, {num_fp8_blocks(tensor.rows), num_fp8_blocks(tensor.cols)});
  if (scales.dtype != Dtype::kF32)
    throw_user_error("{}: tensor '{}' has type {}; scales must be F32", directory_, name,
                     dtype_name(scales.dtype));
  return scales;
}

namespace {

// Of an unquantised kMxfp4 tensor: [experts, cols, rows of one expert].
std::vector<int64_t> exchanged_shape(const TensorSpec& tensor) {
  std::vector<int64_t> shape = tensor.shape();
  std::swap(shape.end()[-1], shape.end()[-2]);
  return shape;
}

}  // namespace

bool CheckpointSource::has_codes(const TensorSpec& tensor) const { return !has(tensor.name); }

Dtype CheckpointSource::type(const TensorSpec& tensor) const {
  if (tensor.kind == TensorKind::kMxfp4 && has_codes(tensor)) {
    require_mxfp4(tensor);
    return Dtype::kBf16;
  }
  if (tensor.kind == TensorKind::kMxfp4) {
    const Dtype dtype = checkpoint_.require(tensor.name, exchanged_shape(tensor)).dtype;
    if (dtype != Dtype::kBf16)
      throw_user_error("{}: tensor '{}' has type {}; supported here: MXFP4, BF16", directory_,
                       tensor.name, dtype_name(dtype));
    return dtype;
  }
  const Dtype dtype = checkpoint_.require(tensor.name, tensor.shape()).dtype;
  const bool matrix = !tensor.is_vector() && tensor.kind != TensorKind::kEmbedding;
  if ((dtype == Dtype::kF8E4M3 || dtype == Dtype::kI8) && matrix) {
    scales_of(tensor);
  } else if (dtype != Dtype::kF32 && dtype != Dtype::kBf16 && dtype != Dtype::kF16) {
    throw_user_error("{}: tensor '{}' has type {}; supported here: BF16, F16, F32{}", directory_,
                     tensor.name, dtype_name(dtype), matrix ? ", F8_E4M3, I8" : "");
  }
  return dtype;
}

SourceRows CheckpointSource::read(const TensorSpec& tensor, Range rows, Range cols,
                                  RowBuffer& buffer) const {
  if (tensor.kind == TensorKind::kMxfp4)
    return has_codes(tensor) ? read_mxfp4(tensor, rows, cols, buffer)
                             : read_exchanged(tensor, rows, buffer);
  if (checkpoint_.require(tensor.name, tensor.shape()).dtype == Dtype::kF16)
    return read_f16(tensor, rows, buffer);
  SourceRows source = read_plain(tensor, rows, buffer);
  if (source.type == SourceRows::Type::kFp8) check_fp8(tensor, rows, cols, source);
  if (tensor.kind == TensorKind::kScale) check_scale(tensor, source);
  return source;
}

SourceRows CheckpointSource::read_plain(const TensorSpec& tensor, Range rows,
                                        RowBuffer& buffer) const {
  const Tensor& stored = checkpoint_.require(tensor.name, tensor.shape());
  SourceRows source;
  source.type = source_type(stored.dtype);
  source.data =
      stored.data + tensor.stored_row(rows.begin) * tensor.cols * dtype_size(stored.dtype);
  source.row_stride = tensor.row_step * tensor.cols;
  source.first_row = rows.begin;
  if (stored.dtype == Dtype::kF8E4M3) {
    TROUPE_CHECK(tensor.stored_shape.empty(), "{}", tensor.name);  // scales are the whole tensor's
    // Copied: nothing in the format aligns them. They are 1/4096 of what they scale.
    const Tensor& scales = scales_of(tensor);
    buffer.scales.resize(scales.bytes / sizeof(float));
    if (scales.bytes > 0) std::memcpy(buffer.scales.data(), scales.data, scales.bytes);
    source.scales = buffer.scales.data();
    source.scale_stride = num_fp8_blocks(tensor.cols);
  } else if (stored.dtype == Dtype::kI8) {
    read_int8_scales(tensor, rows, buffer);
    source.scales = buffer.scales.data();
    source.first_row = 0;
  }
  return source;
}

namespace {

struct Mxfp4Shapes {
  std::vector<int64_t> blocks, scales;  // [..., cols / 32, 16] and [..., cols / 32]
};

Mxfp4Shapes mxfp4_shapes(const TensorSpec& tensor) {
  std::vector<int64_t> shape = tensor.shape();
  shape.back() = tensor.cols / kMxfp4Block;
  Mxfp4Shapes shapes{shape, shape};
  shapes.blocks.push_back(kMxfp4BlockBytes);
  return shapes;
}

}  // namespace

void CheckpointSource::require_mxfp4(const TensorSpec& tensor) const {
  if (tensor.cols % kMxfp4Block != 0)
    throw_user_error("{}: tensor '{}' has {} inputs; MXFP4 takes a multiple of {}", directory_,
                     tensor.name, tensor.cols, kMxfp4Block);
  const Mxfp4Shapes shapes = mxfp4_shapes(tensor);
  for (const auto& [ending, shape] :
       {std::pair{"_blocks", &shapes.blocks}, {"_scales", &shapes.scales}}) {
    const Dtype dtype = checkpoint_.require(tensor.name + ending, *shape).dtype;
    if (dtype != Dtype::kU8)
      throw_user_error("{}: tensor '{}{}' has type {}; MXFP4 is stored as U8", directory_,
                       tensor.name, ending, dtype_name(dtype));
  }
}

// Row s of the matrix is column s % width of expert s / width.
SourceRows CheckpointSource::read_exchanged(const TensorSpec& tensor, Range rows,
                                            RowBuffer& buffer) const {
  const std::vector<int64_t> shape = exchanged_shape(tensor);
  const int64_t width = shape.back();
  const Tensor& stored = checkpoint_.require(tensor.name, shape);
  buffer.data.resize(rows.size() * tensor.cols * sizeof(Bf16));
  for (int64_t k = 0; k < tensor.cols; ++k) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t at = tensor.stored_row(row);
      const int64_t from = (at / width * tensor.cols + k) * width + at % width;
      std::memcpy(buffer.data.data() + ((row - rows.begin) * tensor.cols + k) * sizeof(Bf16),
                  stored.data + from * sizeof(Bf16), sizeof(Bf16));
    }
  }
  return {.type = SourceRows::Type::kBf16,
          .data = buffer.data.data(),
          .row_stride = tensor.cols,
          .first_row = rows.begin};
}

// IEEE 754 binary16: 1-5-10 bits, bias 15. Exact in fp32.
static float f16_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  float magnitude;
  if (exponent == 31)
    magnitude = fraction == 0 ? INFINITY : NAN;
  else if (exponent == 0)
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  else
    magnitude = std::ldexp(static_cast<float>(0x400 | fraction), exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

SourceRows CheckpointSource::read_f16(const TensorSpec& tensor, Range rows,
                                      RowBuffer& buffer) const {
  // A table: ldexp for each weight would take minutes.
  static const std::vector<float> kValues = [] {
    std::vector<float> values(1 << 16);
    for (uint32_t bits = 0; bits < values.size(); ++bits)
      values[bits] = f16_to_float(static_cast<uint16_t>(bits));
    return values;
  }();
  const Tensor& stored = checkpoint_.require(tensor.name, tensor.shape());
  buffer.data.resize(rows.size() * tensor.cols * sizeof(float));
  std::byte* out = buffer.data.data();
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const std::byte* from = stored.data + tensor.stored_row(row) * tensor.cols * sizeof(uint16_t);
    for (int64_t k = 0; k < tensor.cols; ++k, from += sizeof(uint16_t), out += sizeof(float)) {
      uint16_t bits;
      std::memcpy(&bits, from, sizeof bits);
      std::memcpy(out, &kValues[bits], sizeof(float));
    }
  }
  return {.type = SourceRows::Type::kF32,
          .data = buffer.data.data(),
          .row_stride = tensor.cols,
          .first_row = rows.begin};
}

SourceRows CheckpointSource::read_mxfp4(const TensorSpec& tensor, Range rows, Range cols,
                                        RowBuffer& buffer) const {
  const Mxfp4Shapes shapes = mxfp4_shapes(tensor);
  const Tensor& blocks = checkpoint_.require(tensor.name + "_blocks", shapes.blocks);
  const Tensor& scales = checkpoint_.require(tensor.name + "_scales", shapes.scales);
  const int64_t row_blocks = tensor.cols / kMxfp4Block;
  const int64_t first_block = cols.begin / kMxfp4Block;
  const int64_t last_block = (cols.end + kMxfp4Block - 1) / kMxfp4Block;
  buffer.data.resize(rows.size() * tensor.cols * sizeof(Bf16));
  auto* out = reinterpret_cast<Bf16*>(buffer.data.data());
  for (int64_t row = rows.begin; row < rows.end; ++row, out += tensor.cols) {
    const int64_t row_begin = tensor.stored_row(row) * row_blocks;
    for (int64_t i = first_block; i < last_block; ++i) {
      const auto scale = static_cast<uint8_t>(scales.data[row_begin + i]);
      if (scale > kMxfp4MaxScale)
        throw_user_error(
            "{}: tensor '{}_scales' holds {} at row {}, block {}; scales are at most {}",
            directory_, tensor.name, scale, tensor.stored_row(row), i, kMxfp4MaxScale);
      dequantize_mxfp4(blocks.data + (row_begin + i) * kMxfp4BlockBytes, scale,
                       out + i * kMxfp4Block);
    }
  }
  return {.type = SourceRows::Type::kBf16,
          .data = buffer.data.data(),
          .row_stride = tensor.cols,
          .first_row = rows.begin};
}

// Those of `rows`, checked.
void CheckpointSource::read_int8_scales(const TensorSpec& tensor, Range rows,
                                        RowBuffer& buffer) const {
  const Tensor& scales = scales_of(tensor);
  buffer.scales.resize(rows.size());
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float scale;
    Bf16 narrow;
    if (scales.dtype == Dtype::kF32) {
      std::memcpy(&scale, scales.data + row * sizeof scale, sizeof scale);
    } else {
      std::memcpy(&narrow, scales.data + row * sizeof narrow, sizeof narrow);
      scale = to_float(narrow);
    }
    if (!(scale >= 0) || !std::isfinite(scale))
      throw_user_error("{}: tensor '{}_scale' holds {} at [{}, 0]; scales are not negative",
                       directory_, tensor.name, scale, row);
    buffer.scales[row - rows.begin] = scale;
  }
}

void CheckpointSource::check_scale(const TensorSpec& tensor, const SourceRows& source) const {
  std::vector<float> scale(tensor.cols);
  layers::widen_row(source, 0, scale);
  for (const float value : scale)
    if (!(value > 0) || !std::isfinite(value))
      throw_user_error("{}: tensor '{}' holds {}; scales are positive", directory_, tensor.name,
                       value);
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
