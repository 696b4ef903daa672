#include "layers/linear_quantized.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "layers/kernels.h"
#include "layers/quantize.h"

namespace troupe::layers {
namespace {

void check_form(const PackedMatrix& w, const PreparedRows& x) {
  TROUPE_CHECK(x.form == input_form(w, Rounding::kNone) && x.leaves == w.leaves,
               "rows in form {} for weights of type {}", static_cast<int>(x.form),
               static_cast<int>(w.type));
}

}  // namespace

void linear_quantized(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y,
                      Rounding rounding) {
  check_form(w, x);
  const QuantizedShape shape = quantized_shape(w.type, w.leaves);
  int64_t leaf_ends[kTpLeaves];
  for (int i = 0; i < w.leaves.num_leaves; ++i)
    leaf_ends[i] = w.leaves.leaf_begin(w.leaves.first_leaf + i + 1) - w.leaves.k_begin();
  const QuantizedLinearArgs args{.tiles = reinterpret_cast<const uint8_t*>(w.data),
                                 .tile_bytes = shape.tile_bytes,
                                 .tile_codes_at = shape.tile_codes_at,
                                 .rows = w.rows,
                                 .group_cols = shape.group_cols,
                                 .group_offset = shape.group_offset,
                                 .leaf_ends = leaf_ends,
                                 .num_leaves = w.leaves.num_leaves,
                                 .x = reinterpret_cast<const int8_t*>(x.data),
                                 .row_bytes = x.row_bytes,
                                 .row_scales_at = shape.row_scales_at,
                                 .row_offsets_at = shape.row_offsets_at,
                                 .y = y.data,
                                 .y_stride = y.stride,
                                 .tokens = x.rows,
                                 .round_to_bf16 = rounding == Rounding::kBf16};
  if (w.type == WeightType::kInt8) return kernels().linear_int8(args);
  if (w.type == WeightType::kInt4) return kernels().linear_int4(args);
  kernels().linear_mxfp4(args);
}

namespace reference {
namespace {

// A weight is value * scale.
struct Weight {
  int value;
  float scale;
};

class Weights {
 public:
  Weights(const PackedMatrix& w, const QuantizedShape& shape) : w_(w), shape_(shape) {}

  Weight at(int64_t row, int64_t padded_k, int64_t segment) const {
    const auto* tile =
        reinterpret_cast<const uint8_t*>(w_.data) + row / kTileRows * shape_.tile_bytes;
    const int64_t lane = row % kTileRows;
    const uint8_t* scales = tile;
    const uint8_t* codes = tile + shape_.tile_codes_at;
    if (w_.type == WeightType::kInt8) {
      const uint8_t code = codes[(padded_k / 4 * kTileRows + lane) * 4 + padded_k % 4];
      return {code - 128, read<float>(scales, lane)};
    }
    const uint8_t both = codes[(padded_k / 8 * kTileRows + lane) * 4 + padded_k % 4];
    const int code = padded_k % 8 < 4 ? both & 15 : both >> 4;
    const int64_t i = segment * kTileRows + lane;
    if (w_.type == WeightType::kInt4) return {code - 8, to_float(read<Bf16>(scales, i))};
    const float scale = scales[i] == 255 ? std::nanf("") : std::ldexp(1.0f, scales[i] - 127);
    return {static_cast<int>(2 * e2m1_to_float(code)), scale / 2};
  }

 private:
  template <class T>
  static T read(const uint8_t* p, int64_t index) {
    T value;
    std::memcpy(&value, p + index * sizeof(T), sizeof(T));
    return value;
  }

  const PackedMatrix& w_;
  const QuantizedShape& shape_;
};

float sum_of_pairs(std::vector<float> values) {
  while (values.size() > 1) {
    std::vector<float> sums;
    for (size_t i = 0; i + 1 < values.size(); i += 2) sums.push_back(values[i] + values[i + 1]);
    if (values.size() % 2 == 1) sums.push_back(values.back());
    values = sums;
  }
  return values[0];
}

float output(const PackedMatrix& w, const QuantizedShape& shape, const std::byte* x, int64_t n) {
  const Weights weights(w, shape);
  const auto* codes = reinterpret_cast<const int8_t*>(x);
  const auto* scales = reinterpret_cast<const float*>(x + shape.row_scales_at);
  std::vector<float> leaf_sums(w.leaves.num_leaves, 0.0f);
  int64_t padded = 0, segment = 0;
  for (int i = 0; i < w.leaves.num_leaves; ++i) {
    const int leaf = w.leaves.first_leaf + i;
    const int64_t leaf_end = w.leaves.leaf_begin(leaf + 1);
    for (int64_t k = w.leaves.leaf_begin(leaf), end; k < leaf_end; k = end, ++segment) {
      end = std::min(leaf_end, (k / shape.group_cols + 1) * shape.group_cols);
      int32_t dot = 0;
      for (int64_t j = padded; j < padded + end - k; ++j)
        dot += weights.at(n, j, segment).value * codes[j];
      const float scale = weights.at(n, padded, segment).scale * scales[segment];
      const auto value = static_cast<float>(dot);
      leaf_sums[i] = std::fma(value, scale, leaf_sums[i]);
      padded += padded_size(end - k);
    }
  }
  return sum_of_pairs(leaf_sums);
}

}  // namespace

void linear_quantized(const PackedMatrix& w, const PreparedRows& x, Matrix<float> y,
                      Rounding rounding) {
  check_form(w, x);
  const QuantizedShape shape = quantized_shape(w.type, w.leaves);
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t n = 0; n < w.rows; ++n) {
      const float sum = output(w, shape, x.data + t * x.row_bytes, n);
      y.row(t)[n] = rounding == Rounding::kBf16 ? round_to_bf16(sum) : sum;
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
