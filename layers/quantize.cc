#include "layers/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "layers/kernels.h"

namespace troupe::layers {
namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kStoreOverrun = 8;  // of quantize_kernel.h
constexpr int64_t kOneGroup = int64_t{1} << 40;
constexpr int64_t kMaxSegment = int64_t{1} << 17;  // the sum of its codes is below 2^24

int64_t whole_lines(int64_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

int64_t group_of(WeightType type) { return type == WeightType::kInt8 ? kOneGroup : kQuantGroup; }

// Adds the segments of the inputs [begin, end) of one leaf, counted from input 0 of the whole row.
void count_segments(int64_t begin, int64_t end, int64_t group, QuantizedShape& shape) {
  if (begin == end) return;
  const int64_t first = begin / group, last = (end - 1) / group;
  shape.segments += last - first + 1;
  if (first == last) {
    shape.padded_cols += padded_size(end - begin);
    return;
  }
  shape.padded_cols += padded_size((first + 1) * group - begin) + padded_size(end - last * group) +
                       (last - first - 1) * group;
}

void set_tile(WeightType type, QuantizedShape& shape) {
  const bool is_int8 = type == WeightType::kInt8;
  const int64_t scales = is_int8 ? 1 : shape.segments;
  const int64_t scale_bytes = is_int8 ? 4 : type == WeightType::kInt4 ? 2 : 1;
  shape.weight_offset = is_int8 ? 128 : type == WeightType::kInt4 ? 8 : 12;
  shape.tile_codes_at = whole_lines(scales * kTileRows * scale_bytes);
  shape.tile_bytes =
      shape.tile_codes_at + whole_lines(shape.padded_cols * kTileRows / (is_int8 ? 1 : 2));
}

}  // namespace

QuantizedShape quantized_shape(WeightType type, const LeafRange& leaves) {
  TROUPE_CHECK(is_quantized(type), "weight type {}", static_cast<int>(type));
  QuantizedShape shape;
  shape.group_cols = group_of(type);
  shape.group_offset = leaves.k_begin() % shape.group_cols;
  for (int i = 0; i < leaves.num_leaves; ++i) {
    const int64_t begin = leaves.leaf_begin(leaves.first_leaf + i);
    const int64_t end = leaves.leaf_begin(leaves.first_leaf + i + 1);
    TROUPE_CHECK(end - begin <= kMaxSegment, "a leaf of {} inputs", end - begin);
    count_segments(begin, end, shape.group_cols, shape);
  }
  set_tile(type, shape);
  shape.row_scales_at = whole_lines(shape.padded_cols + kStoreOverrun);
  shape.row_offsets_at = shape.row_scales_at + shape.segments * 4;
  // An odd number of cache lines: rows 4 KiB apart would all fall into one set of L1.
  shape.row_bytes =
      (whole_lines(shape.row_offsets_at + shape.segments * 4) / kCacheLine | 1) * kCacheLine;
  return shape;
}

void quantize_rows(WeightType type, const LeafRange& leaves, Matrix<const float> x,
                   std::byte* out) {
  const QuantizedShape shape = quantized_shape(type, leaves);
  int64_t leaf_ends[kTpLeaves];
  for (int i = 0; i < leaves.num_leaves; ++i)
    leaf_ends[i] = leaves.leaf_begin(leaves.first_leaf + i + 1) - leaves.k_begin();
  for (int64_t row = 0; row < x.rows; ++row, out += shape.row_bytes) {
    kernels().quantize_row({.x = x.row(row),
                            .leaf_ends = leaf_ends,
                            .num_leaves = leaves.num_leaves,
                            .group_cols = shape.group_cols,
                            .group_offset = shape.group_offset,
                            .weight_offset = shape.weight_offset,
                            .codes = reinterpret_cast<int8_t*>(out),
                            .scales = reinterpret_cast<float*>(out + shape.row_scales_at),
                            .offsets = reinterpret_cast<int32_t*>(out + shape.row_offsets_at)});
  }
}

float e2m1_to_float(int code) {
  constexpr float kMagnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return (code & 8) != 0 ? -kMagnitudes[code & 7] : kMagnitudes[code & 7];
}

namespace reference {
namespace {

// Writes one segment; returns the sum of its codes.
int32_t quantize_segment(const float* x, int64_t count, int8_t* codes, float* scale) {
  float magnitude = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(x[i]);
    magnitude = std::max(magnitude, std::abs(x[i]));
  }
  std::memset(codes, 0, padded_size(count));
  *scale = finite ? 0 : std::numeric_limits<float>::quiet_NaN();
  if (!finite || magnitude < kSmallestMagnitude) return 0;
  *scale = magnitude / 127;
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    // One rounding of the exact product: it has 48 bits.
    codes[i] = static_cast<int8_t>(std::nearbyint(double{x[i]} * double{127 / magnitude}));
    sum += codes[i];
  }
  return sum;
}

}  // namespace

void quantize_rows(WeightType type, const LeafRange& leaves, Matrix<const float> x,
                   std::byte* out) {
  const QuantizedShape shape = quantized_shape(type, leaves);
  for (int64_t row = 0; row < x.rows; ++row, out += shape.row_bytes) {
    auto* codes = reinterpret_cast<int8_t*>(out);
    auto* scales = reinterpret_cast<float*>(out + shape.row_scales_at);
    auto* offsets = reinterpret_cast<int32_t*>(out + shape.row_offsets_at);
    for (int leaf = leaves.first_leaf; leaf < leaves.first_leaf + leaves.num_leaves; ++leaf) {
      for (int64_t k = leaves.leaf_begin(leaf), end; k < leaves.leaf_begin(leaf + 1); k = end) {
        end = std::min(leaves.leaf_begin(leaf + 1), (k / shape.group_cols + 1) * shape.group_cols);
        const int64_t first = k - leaves.k_begin();
        *offsets++ =
            -shape.weight_offset * quantize_segment(x.row(row) + first, end - k, codes, scales++);
        codes += padded_size(end - k);
      }
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
