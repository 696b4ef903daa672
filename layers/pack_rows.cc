// pack_rows of layers/packed_matrix.h: from a checkpoint's rows to the kernel's tiles.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/error.h"
#include "layers/packed_matrix.h"
#include "layers/quantize.h"

namespace troupe::layers {
namespace {

struct Fp8 {
  uint8_t code;
};
struct Int8 {
  int8_t code;
};

using SourceType = SourceRows::Type;

// The part of a tile that is packed at once: lanes [first_lane, last_lane) and the at most
// kFp8Block inputs that share a scale.
struct Run {
  const std::byte* rows[kTileRows];  // each at the run's first input; any alignment
  float scales[kTileRows];           // fp8 and int8 only
  int first_lane;
  int last_lane;
  int64_t num_k;

  bool is_whole_tile() const { return last_lane - first_lane == kTileRows; }
};

const std::array<float, 256> kFp8Values = [] {
  std::array<float, 256> values;
  for (int code = 0; code < 256; ++code)
    values[code] = fp8_e4m3_to_float(static_cast<uint8_t>(code));
  return values;
}();

template <class From>
constexpr bool kHasScales = std::is_same_v<From, Fp8> || std::is_same_v<From, Int8>;

template <class From>
float source_scale(const SourceRows& source, int64_t row, int64_t k) {
  if constexpr (std::is_same_v<From, Int8>) return source.scales[source.first_row + row];
  const int64_t block_row = (source.first_row + row) / kFp8Block;
  return source.scales[block_row * source.scale_stride + k / kFp8Block];
}

float widen(float value, float) { return value; }
float widen(Bf16 value, float) { return to_float(value); }
float widen(Fp8 value, float scale) { return kFp8Values[value.code] * scale; }
float widen(Int8 value, float scale) { return static_cast<float>(value.code) * scale; }

template <class To>
To convert(float value) {
  if constexpr (std::is_same_v<To, Bf16>)
    return to_bf16(value);
  else
    return value;
}

template <class From>
void widen_all(const SourceRows& source, int64_t i, std::span<float> row) {
  for (size_t k = 0; k < row.size(); ++k) {
    From value;
    std::memcpy(&value, source.data + (i * source.row_stride + k) * sizeof(From), sizeof(From));
    float scale = 1;
    if constexpr (kHasScales<From>) scale = source_scale<From>(source, i, k);
    row[k] = widen(value, scale);
  }
}

// 16 bytes of a row, and such vectors a, b with their elements interleaved: first halves, last
// halves.
using Bytes = uint8_t __attribute__((vector_size(16)));

template <size_t kElementBytes>
void interleave(Bytes a, Bytes b, Bytes& low, Bytes& high) {
  if constexpr (kElementBytes == 1) {
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high =
        __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (kElementBytes == 2) {
    low = __builtin_shufflevector(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
    high =
        __builtin_shufflevector(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
  } else {
    low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    high =
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  }
}

// Transposes a matrix of 16 rows of 16 bytes. Interleaving the first half of all elements with the
// last rotates the bits of an element's index by one; four times exchange the row with the column.
template <size_t kElementBytes>
void transpose16(Bytes* rows) {
  for (int round = 0; round < 4; ++round) {
    Bytes next[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      interleave<kElementBytes>(rows[i], rows[i + 8], next[2 * i], next[2 * i + 1]);
    std::memcpy(rows, next, sizeof(next));
  }
}

template <class To, class From>
void convert_row(const std::byte* row, float scale, int64_t count, To* out) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(out, row, count * sizeof(To));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      From value;
      std::memcpy(&value, row + i * sizeof(From), sizeof(From));
      out[i] = convert<To>(widen(value, scale));
    }
  }
}

template <class To, class From>
void pack_run(const Run& run, To* out) {
  To rows[kTileRows][kFp8Block] = {};
  for (int lane = run.first_lane; lane < run.last_lane; ++lane)
    convert_row<To, From>(run.rows[lane], run.scales[lane], run.num_k, rows[lane]);

  constexpr int64_t kColumns = sizeof(Bytes) / sizeof(To);
  for (int64_t k = 0; k < run.num_k; k += kColumns) {
    Bytes block[kTileRows];
    for (int lane = 0; lane < kTileRows; ++lane)
      std::memcpy(&block[lane], &rows[lane][k], sizeof(Bytes));
    transpose16<sizeof(To)>(block);
    if (run.is_whole_tile() && k + kColumns <= run.num_k) {
      std::memcpy(out + k * kTileRows, block, sizeof(block));
      continue;
    }
    To columns[kColumns][kTileRows];
    std::memcpy(columns, block, sizeof(columns));
    for (int64_t c = 0; c < std::min(kColumns, run.num_k - k); ++c)
      std::copy(columns[c] + run.first_lane, columns[c] + run.last_lane,
                out + (k + c) * kTileRows + run.first_lane);
  }
}

bool has_nan_code(const std::byte* codes, int64_t count) {
  uint8_t greatest = 0;  // not an early exit: this loop is vectorised
  for (int64_t i = 0; i < count; ++i)
    greatest = std::max(greatest, static_cast<uint8_t>(codes[i] & std::byte{0x7f}));
  return greatest == 0x7f;
}

// out: the scales of one tile and block.
void store_scales(const Run& run, float* out) {
  for (int lane = run.first_lane; lane < run.last_lane; ++lane) {
    const bool nan = has_nan_code(run.rows[lane], run.num_k);
    out[lane] = nan ? std::numeric_limits<float>::quiet_NaN() : run.scales[lane];
  }
}

template <class To, class From>
class Packer {
 public:
  Packer(PackedMatrix& matrix, int64_t dst_row, int64_t count, const SourceRows& source)
      : matrix_(matrix), dst_row_(dst_row), count_(count), source_(source) {}

  void pack() {
    const int64_t last_tile = (dst_row_ + count_ - 1) / kTileRows;
    for (int64_t tile = dst_row_ / kTileRows; tile <= last_tile; ++tile) pack_tile(tile);
  }

 private:
  void pack_tile(int64_t tile) {
    const int64_t k_begin = matrix_.leaves.k_begin(), k_end = matrix_.leaves.k_end();
    To* data = reinterpret_cast<To*>(matrix_.data) + tile * matrix_.cols * kTileRows;
    float* scales = matrix_.scales + tile * matrix_.k_blocks() * kTileRows;
    for (int64_t k = k_begin, next; k < k_end; k = next, scales += kTileRows) {
      next = std::min(k_end, (k / kFp8Block + 1) * kFp8Block);
      const Run run = find_run(tile, k, next);
      pack_run<To, From>(run, data + (k - k_begin) * kTileRows);
      if constexpr (std::is_same_v<To, Fp8>) store_scales(run, scales);
    }
  }

  // Inputs [k, k_end) of the rows that fall into a tile.
  Run find_run(int64_t tile, int64_t k, int64_t k_end) const {
    const int64_t tile_row = tile * kTileRows;
    Run run;
    run.first_lane = static_cast<int>(std::max<int64_t>(dst_row_ - tile_row, 0));
    run.last_lane = static_cast<int>(std::min<int64_t>(dst_row_ + count_ - tile_row, kTileRows));
    run.num_k = k_end - k;
    for (int lane = run.first_lane; lane < run.last_lane; ++lane) {
      const int64_t row = tile_row + lane - dst_row_;
      run.rows[lane] = source_.data + (row * source_.row_stride + k) * sizeof(From);
      if constexpr (kHasScales<From>) run.scales[lane] = source_scale<From>(source_, row, k);
    }
    return run;
  }

  PackedMatrix& matrix_;
  const int64_t dst_row_;
  const int64_t count_;
  const SourceRows& source_;
};

}  // namespace

void pack_rows(PackedMatrix& matrix, int64_t dst_row, int64_t count, const SourceRows& source) {
  TROUPE_CHECK(0 <= dst_row && 0 <= count && count <= matrix.rows - dst_row, "rows {}+{} of {}",
               dst_row, count, matrix.rows);
  if (count == 0) return;
  if (is_quantized(matrix.type)) return pack_quantized_rows(matrix, dst_row, count, source);
  const auto pack = [&]<class To, class From>() {
    Packer<To, From>(matrix, dst_row, count, source).pack();
  };
  const WeightType to = matrix.type;
  switch (source.type) {
    case SourceType::kF32:
      if (to == WeightType::kF32) return pack.operator()<float, float>();
      if (to == WeightType::kBf16) return pack.operator()<Bf16, float>();
      break;
    case SourceType::kBf16:
      if (to == WeightType::kF32) return pack.operator()<float, Bf16>();
      if (to == WeightType::kBf16) return pack.operator()<Bf16, Bf16>();
      break;
    case SourceType::kFp8:
      if (to == WeightType::kF32) return pack.operator()<float, Fp8>();
      if (to == WeightType::kBf16) return pack.operator()<Bf16, Fp8>();
      return pack.operator()<Fp8, Fp8>();
    case SourceType::kInt8:
      if (to == WeightType::kF32) return pack.operator()<float, Int8>();
      if (to == WeightType::kBf16) return pack.operator()<Bf16, Int8>();
      break;
  }
  TROUPE_CHECK(false, "source type {} for weight type {}", static_cast<int>(source.type),
               static_cast<int>(to));
}

void widen_row(const SourceRows& source, int64_t i, std::span<float> row) {
  switch (source.type) {
    case SourceType::kF32:
      return widen_all<float>(source, i, row);
    case SourceType::kBf16:
      return widen_all<Bf16>(source, i, row);
    case SourceType::kFp8:
      return widen_all<Fp8>(source, i, row);
    case SourceType::kInt8:
      return widen_all<Int8>(source, i, row);
  }
}

}  // namespace troupe::layers
