// pack_rows of layers/linear.h: from a checkpoint's rows to the kernel's tiles.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "layers/linear.h"

namespace troupe::layers {
namespace {

struct Fp8 {
  uint8_t code;
};

using SourceType = SourceRows::Type;

// The part of a tile that is packed at once: lanes [first_lane, last_lane) and inputs that share a
// block of scales.
struct Run {
  const std::byte* rows[kTileRows];  // each at the run's first input; any alignment
  float scales[kTileRows];           // fp8 only
  int first_lane;
  int last_lane;
  int64_t num_k;
};

const std::array<float, 256>& fp8_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table;
    for (int code = 0; code < 256; ++code)
      table[code] = fp8_e4m3_to_float(static_cast<uint8_t>(code));
    return table;
  }();
  return values;
}

float widen(float value, float) { return value; }
float widen(Bf16 value, float) { return to_float(value); }
float widen(Fp8 value, float scale) { return fp8_values()[value.code] * scale; }

template <class To, class From>
To convert(From value, float scale) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<To, Bf16>)
    return to_bf16(widen(value, scale));
  else
    return widen(value, scale);
}

template <class To, class From>
void transpose(const Run& run, To* out) {
  for (int64_t k = 0; k < run.num_k; ++k) {
    for (int lane = run.first_lane; lane < run.last_lane; ++lane) {
      From value;
      std::memcpy(&value, run.rows[lane] + k * sizeof(From), sizeof(From));
      out[k * kTileRows + lane] = convert<To>(value, run.scales[lane]);
    }
  }
}

bool has_nan_code(const std::byte* codes, int64_t count) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= (codes[i] & std::byte{0x7f}) == std::byte{0x7f};
  return found;
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
      transpose<To, From>(run, data + (k - k_begin) * kTileRows);
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
      if constexpr (std::is_same_v<From, Fp8>) run.scales[lane] = source_scale(row, k);
    }
    return run;
  }

  float source_scale(int64_t row, int64_t k) const {
    const int64_t block_row = (source_.first_row + row) / kFp8Block;
    return source_.scales[block_row * source_.scale_stride + k / kFp8Block];
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
  }
  TROUPE_CHECK(false, "source type {} for weight type {}", static_cast<int>(source.type),
               static_cast<int>(to));
}

}  // namespace troupe::layers
