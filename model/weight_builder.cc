#include "model/weight_builder.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "layers/quantize.h"

namespace troupe::model {

using layers::LeafRange;
using layers::WeightType;

namespace {

// What is packed at once: one rank's turn at a large item, and the step of the progress report.
constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

LeafRange whole(int64_t cols) { return LeafRange{.k_total = cols}; }

std::optional<WeightType> quantized_type(WeightOptions::Format format) {
  if (format == WeightOptions::Format::kInt8) return WeightType::kInt8;
  if (format == WeightOptions::Format::kInt4) return WeightType::kInt4;
  if (format == WeightOptions::Format::kMxfp4) return WeightType::kMxfp4;
  return std::nullopt;
}

float widen(layers::SourceRows::Type type, const std::byte* from, int64_t index) {
  if (type == layers::SourceRows::Type::kF32) {
    float value;
    std::memcpy(&value, from + index * sizeof value, sizeof value);
    return value;
  }
  Bf16 value;
  std::memcpy(&value, from + index * sizeof value, sizeof value);
  return to_float(value);
}

}  // namespace

WeightBuilder::WeightBuilder(const WeightSource& source, const WeightOptions& options,
                             int world_size, int world_rank, WeightMemory memory, Progress progress)
    : source_(source),
      options_(options),
      world_size_(world_size),
      world_rank_(world_rank),
      memory_(memory),
      progress_(std::move(progress)),
      assigned_bytes_(world_size) {}

// The type of int8 checkpoints' matrices: their codes are kept, or there is an error.
WeightType WeightBuilder::int8_type(const TensorSpec& tensor) const {
  if (options_.format == WeightOptions::Format::kAuto ||
      options_.format == WeightOptions::Format::kInt8)
    return WeightType::kInt8;
  throw_user_error(
      "tensor '{}' is int8: it is not converted again; set runtime_config.weight_format to auto",
      tensor.name);
}

WeightType WeightBuilder::packed_type(const MatrixSpec& spec) const {
  const TensorSpec& first = spec.parts.front().tensor;
  const Dtype dtype = source_.type(first);
  for (const MatrixPart& part : spec.parts)
    if (source_.type(part.tensor) != dtype)
      throw_user_error("tensors '{}' and '{}' have types {} and {}; they must have the same one",
                       first.name, part.tensor.name, dtype_name(dtype),
                       dtype_name(source_.type(part.tensor)));
  if (dtype == Dtype::kI8) return int8_type(first);
  if (const auto quantized = quantized_type(options_.format);
      quantized && first.kind != TensorKind::kUnquantized)
    return *quantized;
  const bool as_stored = options_.format == WeightOptions::Format::kAuto && !options_.exact;
  if (as_stored && first.kind == TensorKind::kMxfp4 && source_.has_codes(first))
    return WeightType::kMxfp4;
  if (dtype == Dtype::kF32) return WeightType::kF32;
  if (dtype == Dtype::kF16) return options_.exact ? WeightType::kF32 : WeightType::kBf16;
  if (dtype == Dtype::kBf16) return WeightType::kBf16;
  if (options_.format == WeightOptions::Format::kBf16) return WeightType::kBf16;
  if (options_.format == WeightOptions::Format::kF32) return WeightType::kF32;
  return WeightType::kFp8;
}

WeightType WeightBuilder::kv_b_type() const {
  if (options_.exact) return WeightType::kF32;
  return quantized_type(options_.format) ? WeightType::kInt8 : WeightType::kBf16;
}

std::vector<int> WeightBuilder::visited_shards(int tp_size) const {
  if (tp_size == world_size_) return {world_rank_};
  std::vector<int> all(tp_size);
  for (int shard = 0; shard < tp_size; ++shard) all[shard] = shard;
  return all;
}

std::byte* WeightBuilder::take(int tp_size, size_t bytes) {
  const bool own = tp_size == world_size_;
  size_t& used = own ? own_bytes_ : shared_bytes_;
  std::byte* base = own ? memory_.own : memory_.shared;
  std::byte* memory = base == nullptr ? nullptr : base + used;
  used += aligned(bytes);
  held_bytes_ += own ? bytes : bytes / static_cast<size_t>(tp_size);  // all shards are visited
  return memory;
}

void WeightBuilder::take(int tp_size, PackedMatrix& matrix) {
  matrix.data = take(tp_size, matrix.data_bytes());
  if (matrix.scale_bytes() > 0)
    matrix.scales = reinterpret_cast<float*>(take(tp_size, matrix.scale_bytes()));
}

// Of a shard's holders, the one with the least to do packs the next piece.
bool WeightBuilder::packs(int tp_size, int shard, size_t bytes) {
  int packer = shard;
  if (tp_size < world_size_) {
    for (int rank = shard; rank < world_size_; rank += tp_size)
      if (assigned_bytes_[rank] < assigned_bytes_[packer]) packer = rank;
    assigned_bytes_[packer] += bytes;
  }
  if (packer != world_rank_) return false;
  packed_bytes_ += bytes;
  return memory_.own != nullptr || memory_.shared != nullptr || memory_.reads_only;
}

void WeightBuilder::pack_by_pieces(int tp_size, int shard, int64_t rows, size_t row_bytes,
                                   const std::function<void(Range)>& pack) {
  // Whole tiles: two ranks never write into the same one.
  const auto fitting = static_cast<int64_t>(kPieceBytes / std::max<size_t>(row_bytes, 1));
  const int64_t step = std::max<int64_t>(1, fitting / layers::kTileRows) * layers::kTileRows;
  for (int64_t row = 0; row < rows; row += step) {
    const Range piece{row, std::min(rows, row + step)};
    const size_t bytes = static_cast<size_t>(piece.size()) * row_bytes;
    if (!packs(tp_size, shard, bytes)) continue;
    pack(piece);
    if (progress_) progress_(bytes);
  }
}

void WeightBuilder::pack_piece(const MatrixSpec& spec, Range rows, PackedMatrix& matrix) {
  // The scales of quantised weights are those of whole rows.
  const Range inputs = layers::is_quantized(matrix.type)
                           ? Range{0, spec.leaves.k_total}
                           : Range{spec.leaves.k_begin(), spec.leaves.k_end()};
  int64_t part_begin = 0;  // row of the packed matrix
  for (const MatrixPart& part : spec.parts) {
    const int64_t begin = std::max(rows.begin, part_begin);
    const int64_t end = std::min(rows.end, part_begin + part.rows.size());
    if (begin < end) {
      const int64_t shift = part.rows.begin - part_begin;
      const layers::SourceRows source =
          source_.read(part.tensor, {begin + shift, end + shift}, inputs, buffer_);
      if (!memory_.reads_only) layers::pack_rows(matrix, begin, end - begin, source);
    }
    part_begin += part.rows.size();
  }
}

void WeightBuilder::pack_matrix(int tp_size, int shard, const MatrixSpec& spec,
                                PackedMatrix& matrix) {
  take(tp_size, matrix);
  const size_t row_bytes = matrix.bytes() / static_cast<size_t>(std::max<int64_t>(1, matrix.rows));
  pack_by_pieces(tp_size, shard, matrix.rows, row_bytes,
                 [&](Range rows) { pack_piece(spec, rows, matrix); });
}

PackedMatrix WeightBuilder::matrix(int tp_size, const PerShard<MatrixSpec>& shard_spec) {
  PackedMatrix mine;
  for (const int shard : visited_shards(tp_size)) {
    const MatrixSpec spec = shard_spec(shard);
    int64_t rows = 0;
    for (const MatrixPart& part : spec.parts) rows += part.rows.size();
    PackedMatrix matrix = layers::plan_packed(packed_type(spec), rows, spec.leaves);
    pack_matrix(tp_size, shard, spec, matrix);
    if (holds(tp_size, shard)) mine = matrix;
  }
  return mine;
}

PackedMatrix WeightBuilder::kv_b_part(int tp_size, const PerShard<MatrixPart>& shard_part) {
  PackedMatrix mine;
  for (const int shard : visited_shards(tp_size)) {
    const MatrixPart part = shard_part(shard);
    const MatrixSpec spec{{part}, whole(part.tensor.cols)};
    source_.type(part.tensor);
    PackedMatrix matrix = layers::plan_packed(kv_b_type(), part.rows.size(), spec.leaves);
    pack_matrix(tp_size, shard, spec, matrix);
    if (holds(tp_size, shard)) mine = matrix;
  }
  return mine;
}

// Packing into tiles of fp32 dequantises, and turns 16 rows into columns; those are put side by
// side.
void WeightBuilder::pack_transposed(const MatrixPart& part, PackedMatrix& matrix) {
  const int64_t cols = part.tensor.cols;
  const layers::SourceRows source = source_.read(part.tensor, part.rows, {0, cols}, buffer_);
  if (memory_.reads_only) return;
  PackedMatrix tiles = layers::plan_packed(WeightType::kF32, part.rows.size(), whole(cols));
  std::vector<float> tile_data(tiles.data_bytes() / sizeof(float));
  tiles.data = reinterpret_cast<std::byte*>(tile_data.data());
  layers::pack_rows(tiles, 0, tiles.rows, source);
  const int64_t stride = tiles.tiles() * layers::kTileRows;
  std::vector<float> transposed(tile_data.size());  // [cols, stride]
  for (int64_t tile = 0; tile < tiles.tiles(); ++tile)
    for (int64_t k = 0; k < cols; ++k)
      std::copy_n(&tile_data[(tile * cols + k) * layers::kTileRows], layers::kTileRows,
                  &transposed[k * stride + tile * layers::kTileRows]);
  layers::pack_rows(matrix, 0, cols,
                    {.type = layers::SourceRows::Type::kF32,
                     .data = reinterpret_cast<const std::byte*>(transposed.data()),
                     .row_stride = stride});
}

PackedMatrix WeightBuilder::transposed(int tp_size, const PerShard<MatrixPart>& shard_part) {
  PackedMatrix mine;
  for (const int shard : visited_shards(tp_size)) {
    const MatrixPart part = shard_part(shard);
    source_.type(part.tensor);
    PackedMatrix matrix =
        layers::plan_packed(kv_b_type(), part.tensor.cols, whole(part.rows.size()));
    take(tp_size, matrix);
    if (packs(tp_size, shard, matrix.bytes())) {
      pack_transposed(part, matrix);
      if (progress_) progress_(matrix.bytes());
    }
    if (holds(tp_size, shard)) mine = matrix;
  }
  return mine;
}

std::span<const float> WeightBuilder::vector(const TensorSpec& tensor) {
  return vector(1, [&](int) { return std::vector{tensor}; });
}

std::span<const float> WeightBuilder::vector(int tp_size,
                                             const PerShard<std::vector<TensorSpec>>& shard_parts) {
  std::span<const float> mine;
  for (const int shard : visited_shards(tp_size)) {
    const std::vector<TensorSpec> parts = shard_parts(shard);
    size_t elements = 0;
    for (const TensorSpec& part : parts) {
      source_.type(part);
      elements += static_cast<size_t>(part.rows * part.cols);
    }
    const size_t bytes = elements * sizeof(float);
    auto* memory = reinterpret_cast<float*>(take(tp_size, bytes));
    if (packs(tp_size, shard, bytes)) {
      float* out = memory;
      for (const TensorSpec& part : parts) {
        widen_into(part, out);
        out += part.rows * part.cols;
      }
      if (progress_) progress_(bytes);
    }
    if (holds(tp_size, shard)) mine = {memory, memory == nullptr ? 0 : elements};
  }
  return mine;
}

void WeightBuilder::widen_into(const TensorSpec& tensor, float* out) {
  const layers::SourceRows source =
      source_.read(tensor, {0, tensor.rows}, {0, tensor.cols}, buffer_);
  if (memory_.reads_only) return;
  for (int64_t row = 0; row < tensor.rows; ++row)
    for (int64_t i = 0; i < tensor.cols; ++i)
      *out++ = widen(source.type, source.data, row * source.row_stride + i);
}

Embedding WeightBuilder::embedding(const TensorSpec& tensor, int tp_size,
                                   const PerShard<Range>& shard_rows) {
  Embedding mine;
  const Dtype stored = source_.type(tensor);
  const Dtype dtype = stored == Dtype::kF16 ? Dtype::kF32 : stored;
  const size_t row_bytes = static_cast<size_t>(tensor.cols) * dtype_size(dtype);
  for (const int shard : visited_shards(tp_size)) {
    const Range vocab = shard_rows(shard);
    std::byte* memory = take(tp_size, static_cast<size_t>(vocab.size()) * row_bytes);
    pack_by_pieces(tp_size, shard, vocab.size(), row_bytes, [&](Range rows) {
      const Range from{vocab.begin + rows.begin, vocab.begin + rows.end};
      const layers::SourceRows source = source_.read(tensor, from, {0, tensor.cols}, buffer_);
      if (!memory_.reads_only)
        std::memcpy(memory + rows.begin * row_bytes, source.data,
                    static_cast<size_t>(rows.size()) * row_bytes);
    });
    if (holds(tp_size, shard)) mine = {dtype, memory, vocab};
  }
  return mine;
}

}  // namespace troupe::model
