// layers/swiglu_kernel.h: one row of swiglu over F32x16.
#pragma once

#include "layers/kernels.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

inline F32x16 silu(F32x16 x) {
  return div(x, add(F32x16::splat(1.0f), exp(sub(F32x16::zero(), x))));
}

inline void swiglu_row(const SwigluArgs& args) {
  for (int64_t i = 0; i < args.width; i += 16) {
    const int64_t n = args.width - i < 16 ? args.width - i : 16;
    F32x16 out = mul(silu(load_first(args.gate + i, n)), load_first(args.up + i, n));
    if (args.round_to_bf16) out = round_to_bf16(out);
    store_first(args.out + i, out, n);
  }
}

inline void clamped_swiglu_row(const SwigluArgs& args) {
  const F32x16 limit = F32x16::splat(args.limit), one = F32x16::splat(1.0f);
  for (int64_t i = 0; i < args.width; i += 16) {
    const int64_t n = args.width - i < 16 ? args.width - i : 16;
    // min and max give their second operand for a NaN: it stays.
    const F32x16 gate = min(limit, load_first(args.gate + i, n));
    const F32x16 up = max(F32x16::splat(-args.limit), min(limit, load_first(args.up + i, n)));
    const F32x16 scaled = mul(F32x16::splat(args.alpha), gate);
    const F32x16 sigmoid_divisor = add(one, exp(sub(F32x16::zero(), scaled)));
    F32x16 out = mul(div(gate, sigmoid_divisor), add(up, one));
    if (args.round_to_bf16) out = round_to_bf16(out);
    store_first(args.out + i, out, n);
  }
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
