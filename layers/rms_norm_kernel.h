// layers/rms_norm_kernel.h: one row of rms_norm over F32x16.
#pragma once

#include "layers/kernels.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

inline float sum_of_squares(const float* x, int64_t width) {
  F32x16 sum = F32x16::zero();
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    const F32x16 v = load(x + i);
    sum = fma(v, v, sum);
  }
  const F32x16 v = load_first(x + i, width - i);
  return reduce_add(fma(v, v, sum));
}

inline void rms_norm_row(const RmsNormArgs& args) {
  const float mean = sum_of_squares(args.x, args.width) / static_cast<float>(args.width);
  const F32x16 root = F32x16::splat(__builtin_sqrtf(mean + args.eps));
  for (int64_t i = 0; i < args.width; i += 16) {
    const int64_t n = args.width - i < 16 ? args.width - i : 16;
    F32x16 y = mul(load_first(args.weight + i, n), div(load_first(args.x + i, n), root));
    if (args.round_to_bf16) y = round_to_bf16(y);
    store_first(args.y + i, y, n);
  }
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
