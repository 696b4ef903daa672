// layers/swiglu_kernel.h: one row of swiglu over F32x16.
#pragma once

#include "layers/kernels.h"
#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

inline F32x16 silu(F32x16 x) {
  return div(x, add(F32x16::splat(1.0f), exp(sub(F32x16::zero(), x))));
}

// out[i] = unit(gate[i], up[i]).
template <class Unit>
void gated_row(const SwigluArgs& args, const Unit& unit) {
  const auto rounded = [&](F32x16 gate, F32x16 up) {
    const F32x16 out = unit(gate, up);
    return args.round_to_bf16 ? round_to_bf16(out) : out;
  };
  int64_t i = 0;
  for (; i + 16 <= args.width; i += 16)
    store(args.out + i, rounded(load(args.gate + i), load(args.up + i)));
  if (const int64_t n = args.width - i; n > 0)
    store_first(args.out + i, rounded(load_first(args.gate + i, n), load_first(args.up + i, n)), n);
}

inline void swiglu_row(const SwigluArgs& args) {
  gated_row(args, [](F32x16 gate, F32x16 up) { return mul(silu(gate), up); });
}

inline void clamped_swiglu_row(const SwigluArgs& args) {
  const F32x16 limit = F32x16::splat(args.limit), one = F32x16::splat(1.0f);
  gated_row(args, [&](F32x16 gate_in, F32x16 up_in) {
    // min and max give their second operand for a NaN: it stays.
    const F32x16 gate = min(limit, gate_in);
    const F32x16 up = max(F32x16::splat(-args.limit), min(limit, up_in));
    const F32x16 scaled = mul(F32x16::splat(args.alpha), gate);
    const F32x16 sigmoid_divisor = add(one, exp(sub(F32x16::zero(), scaled)));
    return mul(div(gate, sigmoid_divisor), add(up, one));
  });
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
