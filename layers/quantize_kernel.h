// layers/quantize_kernel.h: a row of inputs as 8-bit codes (layers/quantize.h).
#pragma once

#include "layers/kernels.h"
#include "layers/simd_int8.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// Adding it rounds to an integer, whose two's complement is left in the low bits.
inline constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

struct SegmentScale {
  float scale;    // NaN where an input is no finite number
  float inverse;  // 0 where the codes are 0
};

inline SegmentScale find_scale(const float* x, int64_t count) {
  F32x16 greatest = F32x16::zero(), poison = F32x16::zero();  // poison: NaN or 0
  for (int64_t i = 0; i < count; i += 16) {
    const F32x16 v = count - i < 16 ? load_first(x + i, count - i) : load(x + i);
    greatest = max(greatest, max(v, sub(F32x16::zero(), v)));
    poison = fma(v, F32x16::zero(), poison);
  }
  const float magnitude = reduce_max(greatest), nan = reduce_add(poison);
  if (nan != 0) return {nan, 0};
  if (magnitude < kSmallestMagnitude) return {0, 0};
  return {magnitude / 127, 127 / magnitude};
}

// Returns the sum of the codes: below 2^24 for 2^17 inputs, so exact in fp32 in any order.
inline int32_t store_codes(const float* x, int64_t count, float inverse, int8_t* codes) {
  const F32x16 factor = F32x16::splat(inverse), rounder = F32x16::splat(kRounder);
  F32x16 sum = F32x16::zero();
  for (int64_t i = 0; i < count; i += 16) {
    const F32x16 v = count - i < 16 ? load_first(x + i, count - i) : load(x + i);
    const F32x16 shifted = fma(v, factor, rounder);
    store_low_bytes(codes + i, shifted);
    sum = add(sum, sub(shifted, rounder));
  }
  return static_cast<int32_t>(reduce_add(sum));
}

// Codes are written 16 at a time: up to 8 bytes behind a segment, which the next one overwrites or
// the row's padding takes.
inline void quantize_row(const QuantizeArgs& args) {
  const float* x = args.x;
  int8_t* codes = args.codes;
  int64_t k = 0, segment = 0;
  for (int leaf = 0; leaf < args.num_leaves; ++leaf) {
    while (k < args.leaf_ends[leaf]) {
      const int64_t end = segment_end(args.group_cols, args.group_offset, k, args.leaf_ends[leaf]);
      const SegmentScale found = find_scale(x + k, end - k);
      args.scales[segment] = found.scale;
      args.offsets[segment] = 0;
      if (found.inverse == 0)
        __builtin_memset(codes, 0, padded_size(end - k));
      else
        args.offsets[segment] =
            -args.weight_offset * store_codes(x + k, end - k, found.inverse, codes);
      codes += padded_size(end - k);
      k = end;
      ++segment;
    }
  }
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
