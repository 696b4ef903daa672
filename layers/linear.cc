#include "layers/linear.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "layers/kernels.h"
#include "layers/linear_dot.h"
#include "layers/linear_quantized.h"
#include "layers/quantize.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

// Keeps every size and offset of a matrix below 2^60.
constexpr int64_t kMaxDim = int64_t{1} << 28;

size_t element_bytes(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return sizeof(float);
    case WeightType::kBf16:
      return sizeof(Bf16);
    case WeightType::kFp8:
      return 1;
    case WeightType::kInt8:
    case WeightType::kInt4:
    case WeightType::kMxfp4:
      break;  // quantized_shape() tells
  }
  TROUPE_CHECK(false, "weight type {}", static_cast<int>(type));
}

void check_shapes(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y) {
  TROUPE_CHECK(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows,
               "w [{}, {}] x [{}, {}] y [{}, {}]", w.rows, w.cols, x.rows, x.cols, y.rows, y.cols);
}

using LinearKernel = void (*)(const LinearArgs&);

LinearKernel kernel_for(WeightType type, InputForm form) {
  const bool bf16 = form == InputForm::kBf16;
  LinearKernel kernel = nullptr;
  switch (type) {
    case WeightType::kF32:
      kernel = bf16 ? nullptr : kernels().linear_f32;
      break;
    case WeightType::kBf16:
      kernel = bf16 ? kernels().linear_dot_bf16 : kernels().linear_bf16;
      break;
    case WeightType::kFp8:
      kernel = bf16 ? kernels().linear_dot_fp8 : kernels().linear_fp8;
      break;
    case WeightType::kInt8:
    case WeightType::kInt4:
    case WeightType::kMxfp4:
      break;  // linear_quantized()
  }
  TROUPE_CHECK(kernel != nullptr, "weight type {} has no product with inputs of form {}",
               static_cast<int>(type), static_cast<int>(form));
  return kernel;
}

}  // namespace

int64_t PackedMatrix::k_blocks() const {
  if (type != WeightType::kFp8 || cols == 0) return 0;
  return (leaves.k_end() - 1) / kFp8Block - leaves.k_begin() / kFp8Block + 1;
}

size_t PackedMatrix::data_bytes() const {
  if (is_quantized(type)) return tiles() * quantized_shape(type, leaves).tile_bytes;
  return tiles() * cols * kTileRows * element_bytes(type);
}

size_t PackedMatrix::scale_bytes() const {
  return tiles() * k_blocks() * kTileRows * sizeof(float);
}

PackedMatrix plan_packed(WeightType type, int64_t rows, const LeafRange& leaves) {
  TROUPE_CHECK(0 <= rows && rows <= kMaxDim && 0 <= leaves.k_total && leaves.k_total <= kMaxDim,
               "[{}, {}]", rows, leaves.k_total);
  TROUPE_CHECK(0 <= leaves.first_leaf && 1 <= leaves.num_leaves && leaves.num_leaves <= kTpLeaves &&
                   leaves.total_leaves <= kMaxDim &&
                   leaves.first_leaf <= leaves.total_leaves - leaves.num_leaves,
               "leaves {}+{} of {}", leaves.first_leaf, leaves.num_leaves, leaves.total_leaves);
  return PackedMatrix{
      .type = type, .rows = rows, .cols = leaves.k_end() - leaves.k_begin(), .leaves = leaves};
}

PackedMatrix tile_range(const PackedMatrix& w, int64_t first, int64_t count) {
  TROUPE_CHECK(0 <= first && 0 <= count && count <= w.tiles() - first, "tiles {}+{} of {}", first,
               count, w.tiles());
  const int64_t tiles = std::max<int64_t>(w.tiles(), 1);
  PackedMatrix range = w;
  range.rows = std::min(count * kTileRows, w.rows - first * kTileRows);
  range.data += first * (static_cast<int64_t>(w.data_bytes()) / tiles);
  if (w.scale_bytes() > 0) range.scales += first * w.k_blocks() * kTileRows;
  return range;
}

namespace {

// Tiles that a thread takes at once: a multiple of what the kernels compute together, and worth the
// few hundred nanoseconds that sharing out costs.
constexpr int64_t kPieceTiles = 8;
constexpr int64_t kPieceProducts = int64_t{1} << 16;

int64_t piece_tiles(const LinearJob& job) {
  const int64_t block = kPieceTiles * kTileRows * std::max<int64_t>(job.x.rows * job.w->cols, 1);
  return kPieceTiles * std::max<int64_t>(1, kPieceProducts / block);
}

int64_t num_pieces(const LinearJob& job) {
  const int64_t tiles = piece_tiles(job);
  return job.x.rows == 0 ? 0 : (job.w->tiles() + tiles - 1) / tiles;
}

// On this thread.
void multiply(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding) {
  if (is_quantized(w.type)) return linear_quantized(w, x, y, rounding);
  int64_t leaf_ends[kTpLeaves];
  for (int i = 0; i < w.leaves.num_leaves; ++i)
    leaf_ends[i] = w.leaves.leaf_begin(w.leaves.first_leaf + i + 1) - w.leaves.k_begin();
  const LinearArgs args{.weights = w.data,
                        .scales = w.scales,
                        .rows = w.rows,
                        .cols = w.cols,
                        .k_blocks = w.k_blocks(),
                        .block_cols = kFp8Block,
                        .block_offset = w.leaves.k_begin() % kFp8Block,
                        .leaf_ends = leaf_ends,
                        .num_leaves = w.leaves.num_leaves,
                        .x = x.data,
                        .x_row_bytes = x.row_bytes,
                        .y = y.data,
                        .y_stride = y.stride,
                        .tokens = x.rows,
                        .round_to_bf16 = rounding == Rounding::kBf16};
  kernel_for(w.type, x.form)(args);
}

// The tiles [first, last) of a job.
void multiply_tiles(const LinearJob& job, int64_t first, int64_t last, Rounding rounding) {
  const PackedMatrix tiles = tile_range(*job.w, first, last - first);
  const Matrix<float> y(job.y.data + first * kTileRows, job.y.rows, tiles.rows, job.y.stride);
  multiply(tiles, job.x, y, rounding);
}

}  // namespace

void linear(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding) {
  const LinearJob job{&w, x, y};
  grouped_linear({&job, 1}, rounding);
}

void grouped_linear(std::span<const LinearJob> jobs, Rounding rounding) {
  int64_t pieces = 0;
  for (const LinearJob& job : jobs) {
    check_shapes(*job.w, job.x, job.y);
    pieces += num_pieces(job);
  }
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // piece of the job
    for (const LinearJob& job : jobs) {
      const int64_t count = num_pieces(job), tiles = piece_tiles(job);
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, count);
      if (from < to)
        multiply_tiles(job, from * tiles, std::min(to * tiles, job.w->tiles()), rounding);
      first += count;
    }
  });
}

float fp8_e4m3_to_float(uint8_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

namespace reference {
namespace {

float weight(const PackedMatrix& w, int64_t n, int64_t k) {
  const int64_t tile = n / kTileRows, lane = n % kTileRows;
  const int64_t i = (tile * w.cols + k) * kTileRows + lane;
  switch (w.type) {
    case WeightType::kF32:
      return reinterpret_cast<const float*>(w.data)[i];
    case WeightType::kBf16:
      return to_float(reinterpret_cast<const Bf16*>(w.data)[i]);
    default:
      break;
  }
  const int64_t k_begin = w.leaves.k_begin();
  const int64_t block = (k_begin + k) / kFp8Block - k_begin / kFp8Block;
  return fp8_e4m3_to_float(static_cast<uint8_t>(w.data[i])) *
         w.scales[(tile * w.k_blocks() + block) * kTileRows + lane];
}

}  // namespace

float sum_of_pairs(std::vector<float> values) {
  while (values.size() > 1) {
    std::vector<float> sums;
    for (size_t i = 0; i + 1 < values.size(); i += 2) sums.push_back(values[i] + values[i + 1]);
    if (values.size() % 2 == 1) sums.push_back(values.back());
    values = sums;
  }
  return values[0];
}

void linear(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y, Rounding rounding) {
  check_shapes(w, x, y);
  if (x.form == InputForm::kBf16) return linear_dot(w, x, y, rounding);
  if (is_quantized(w.type)) return reference::linear_quantized(w, x, y, rounding);
  const LeafRange& leaves = w.leaves;
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* inputs = reinterpret_cast<const float*>(x.data + t * x.row_bytes);
    for (int64_t n = 0; n < w.rows; ++n) {
      std::vector<float> sums(leaves.num_leaves, 0.0f);
      for (int leaf = 0; leaf < leaves.num_leaves; ++leaf) {
        const int64_t begin = leaves.leaf_begin(leaves.first_leaf + leaf) - leaves.k_begin();
        const int64_t end = leaves.leaf_begin(leaves.first_leaf + leaf + 1) - leaves.k_begin();
        for (int64_t k = begin; k < end; ++k)
          sums[leaf] = std::fma(weight(w, n, k), inputs[k], sums[leaf]);
      }
      const float sum = sum_of_pairs(sums);
      y.row(t)[n] = rounding == Rounding::kBf16 ? round_to_bf16(sum) : sum;
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
