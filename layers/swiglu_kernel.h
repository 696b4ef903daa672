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

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
