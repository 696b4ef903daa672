// layers/kv_codes_kernel.h: rows of an int8 KV cache (layers/kv_cache.h), written and read.
#pragma once

#include "layers/kernels.h"
#include "layers/quantize_kernel.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// One group's codes; returns its scale. `given`: the scale to use, or 0.
inline float quantize_kv(const float* x, int64_t count, float given, int8_t* codes) {
  const SegmentScale found = find_scale(x, count);
  const bool finite = found.scale == found.scale;
  const bool use_given = given != 0 && finite;
  const F32x16 factor = F32x16::splat(use_given ? 1 / given : found.inverse);
  const F32x16 least = F32x16::splat(-128), most = F32x16::splat(127);
  const F32x16 rounder = F32x16::splat(kRounder);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t n = count - i < 16 ? count - i : 16;
    // Not finite: the codes mean nothing, but they are the same on every instruction set.
    const F32x16 v = finite ? load_first(x + i, n) : F32x16::zero();
    int8_t lanes[16];
    store_low_bytes(lanes, add(max(least, min(most, mul(v, factor))), rounder));
    __builtin_memcpy(codes + i, lanes, static_cast<size_t>(n));
  }
  return use_given ? given : found.scale;
}

// Codes times their scale, as fp32.
inline void widen_codes(const int8_t* codes, int64_t count, float scale, float* out) {
  const F32x16 factor = F32x16::splat(scale);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, mul(load(codes + i), factor));
  if (i < count) store_first(out + i, mul(load_first(codes + i, count - i), factor), count - i);
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
