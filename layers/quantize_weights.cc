// pack_quantized_rows of layers/quantize.h: a checkpoint's rows become codes and scales in tiles.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "layers/quantize.h"
#include "layers/segments.h"

namespace troupe::layers {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint8_t kNanExponent = 255;

bool all_finite(const float* w, int64_t count) {
  float poison = 0;
  for (int64_t i = 0; i < count; ++i) poison += w[i] * 0.0f;
  return poison == 0;
}

float largest_magnitude(const float* w, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(w[i]));
  return largest;
}

// To nearest, ties to even, for |x| < 2^22; unlike std::nearbyint it is vectorised.
int round_to_int(float x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  return static_cast<int>((x + kRounder) - kRounder);
}

// A format quantises `count` weights that share a scale to codes below 16 (256 for int8).

struct Int4Group {
  using Scale = Bf16;

  static Scale quantize(const float* w, int64_t count, uint8_t* codes) {
    std::fill_n(codes, count, uint8_t{8});
    if (!all_finite(w, count)) return to_bf16(kNan);
    float extreme = 0;
    for (int64_t i = 0; i < count; ++i)
      if (std::abs(w[i]) > std::abs(extreme)) extreme = w[i];
    if (std::abs(extreme) < kSmallestMagnitude) return to_bf16(0);
    const Bf16 scale = to_bf16(extreme / -8);
    const float inverse = 1 / to_float(scale);
    for (int64_t i = 0; i < count; ++i)
      codes[i] = static_cast<uint8_t>(std::clamp(static_cast<int>(w[i] * inverse + 8.5f), 0, 15));
    return scale;
  }
};

// Nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6; ties to the even code.
int nearest_e2m1(float magnitude) {
  constexpr float kMiddles[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5};
  int code = 0;
  for (int i = 0; i < 7; ++i)
    code += magnitude > kMiddles[i] || (magnitude == kMiddles[i] && i % 2);
  return code;
}

struct Mxfp4Group {
  using Scale = uint8_t;

  static Scale quantize(const float* w, int64_t count, uint8_t* codes) {
    std::fill_n(codes, count, uint8_t{0});
    if (!all_finite(w, count)) return kNanExponent;
    const float largest = largest_magnitude(w, count);
    if (largest < kSmallestMagnitude) return 0;
    const int exponent = std::ilogb(largest) - 2;  // e2m1's own largest exponent is 2
    const float inverse = std::ldexp(1.0f, -exponent);
    for (int64_t i = 0; i < count; ++i)
      codes[i] = static_cast<uint8_t>(nearest_e2m1(std::abs(w[i]) * inverse) |
                                      (std::signbit(w[i]) ? 8 : 0));
    return static_cast<uint8_t>(exponent + 127);
  }
};

// Code 128 is 0.
float quantize_int8_row(const float* w, int64_t count, uint8_t* codes) {
  std::fill_n(codes, count, uint8_t{128});
  if (!all_finite(w, count)) return kNan;
  const float largest = largest_magnitude(w, count);
  if (largest < kSmallestMagnitude) return 0;
  const float inverse = 127 / largest;
  for (int64_t i = 0; i < count; ++i)
    codes[i] = static_cast<uint8_t>(128 + round_to_int(w[i] * inverse));
  return largest / 127;
}

// Writes one row of the matrix, from codes of all inputs of the whole row.
class RowWriter {
 public:
  RowWriter(PackedMatrix& matrix, const QuantizedShape& shape) : matrix_(matrix), shape_(shape) {}

  void begin_row(int64_t row) {
    tile_ = reinterpret_cast<uint8_t*>(matrix_.data) + row / kTileRows * shape_.tile_bytes;
    lane_ = row % kTileRows;
    codes_ = tile_ + shape_.tile_codes_at;
  }

  template <class Scale>
  void write_scale(int64_t segment, Scale scale) {
    std::memcpy(tile_ + (segment * kTileRows + lane_) * sizeof scale, &scale, sizeof scale);
  }

  // Calls write(k, end, padded, segment) for every segment, k counted from input 0 of the row.
  template <class Write>
  void for_each_segment(const Write& write) const {
    const LeafRange& leaves = matrix_.leaves;
    int64_t padded = 0, segment = 0;
    for (int leaf = leaves.first_leaf; leaf < leaves.first_leaf + leaves.num_leaves; ++leaf) {
      const int64_t leaf_end = leaves.leaf_begin(leaf + 1);
      for (int64_t k = leaves.leaf_begin(leaf), end; k < leaf_end; k = end) {
        end = segment_end(shape_.group_cols, 0, k, leaf_end);
        write(k, end, padded, segment++);
        padded += padded_size(end - k);
      }
    }
  }

  void write_int8(const uint8_t* codes, int64_t count, int64_t padded) {
    for (int64_t i = 0; i < count; i += 4)
      std::memcpy(codes_ + ((padded + i) / 4 * kTileRows + lane_) * 4, codes + i,
                  std::min<int64_t>(4, count - i));
  }

  // codes: padded with anything to a multiple of 8.
  void write_nibbles(const uint8_t* codes, int64_t count, int64_t padded) {
    for (int64_t i = 0; i < count; i += 8) {
      uint32_t low, high;
      std::memcpy(&low, codes + i, 4);
      std::memcpy(&high, codes + i + 4, 4);
      const uint32_t both = low | high << 4;
      std::memcpy(codes_ + ((padded + i) / 8 * kTileRows + lane_) * 4, &both, 4);
    }
  }

 private:
  PackedMatrix& matrix_;
  const QuantizedShape& shape_;
  uint8_t* tile_ = nullptr;  // its scales
  uint8_t* codes_ = nullptr;
  int64_t lane_ = 0;
};

// Of the groups of a row those that the matrix touches; a group that its edge cuts in two is still
// scaled as a whole.
template <class Group>
void pack_grouped(PackedMatrix& matrix, int64_t dst_row, int64_t count, const SourceRows& source) {
  const QuantizedShape shape = quantized_shape(matrix.type, matrix.leaves);
  const int64_t cols = matrix.leaves.k_total;
  const int64_t num_groups = (cols + kQuantGroup - 1) / kQuantGroup;
  const int64_t first = matrix.leaves.k_begin() / kQuantGroup;
  const int64_t last = (matrix.leaves.k_end() + kQuantGroup - 1) / kQuantGroup;
  std::vector<uint8_t> codes(num_groups * kQuantGroup + kSegmentPad);
  std::vector<typename Group::Scale> scales(num_groups);
  std::vector<float> w(cols);
  RowWriter writer(matrix, shape);
  for (int64_t row = 0; row < count; ++row) {
    widen_row(source, row, w);
    for (int64_t g = first; g < last; ++g)
      scales[g] =
          Group::quantize(w.data() + g * kQuantGroup, std::min(kQuantGroup, cols - g * kQuantGroup),
                          &codes[g * kQuantGroup]);
    writer.begin_row(dst_row + row);
    writer.for_each_segment([&](int64_t k, int64_t end, int64_t padded, int64_t segment) {
      writer.write_scale(segment, scales[k / kQuantGroup]);
      writer.write_nibbles(&codes[k], end - k, padded);
    });
  }
}

void pack_int8(PackedMatrix& matrix, int64_t dst_row, int64_t count, const SourceRows& source) {
  const QuantizedShape shape = quantized_shape(matrix.type, matrix.leaves);
  const int64_t cols = matrix.leaves.k_total;
  std::vector<uint8_t> codes(cols);
  std::vector<float> w(cols);
  RowWriter writer(matrix, shape);
  for (int64_t row = 0; row < count; ++row) {
    writer.begin_row(dst_row + row);
    if (source.type == SourceRows::Type::kInt8) {
      const std::byte* stored = source.data + row * source.row_stride;
      for (int64_t k = 0; k < cols; ++k)
        codes[k] = std::to_integer<uint8_t>(stored[k] ^ std::byte{128});
      writer.write_scale(0, source.scales[source.first_row + row]);
    } else {
      widen_row(source, row, w);
      writer.write_scale(0, quantize_int8_row(w.data(), cols, codes.data()));
    }
    writer.for_each_segment([&](int64_t k, int64_t end, int64_t padded, int64_t) {
      writer.write_int8(&codes[k], end - k, padded);
    });
  }
}

}  // namespace

void pack_quantized_rows(PackedMatrix& matrix, int64_t dst_row, int64_t count,
                         const SourceRows& source) {
  if (matrix.type == WeightType::kInt8) return pack_int8(matrix, dst_row, count, source);
  if (matrix.type == WeightType::kInt4)
    return pack_grouped<Int4Group>(matrix, dst_row, count, source);
  pack_grouped<Mxfp4Group>(matrix, dst_row, count, source);
}

}  // namespace troupe::layers
