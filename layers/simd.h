// layers/simd.h: sixteen fp32 lanes, the same bits on every instruction set.
//
// The kernels (*_kernel.h) are written once over F32x16 and compiled once per instruction set: each
// isa_*.cc defines TROUPE_ISA_NAMESPACE, then includes them. Every operation rounds as IEEE 754
// asks of one operation (fma is fused), and every reduction is one fixed tree, so that all paths
// give equal bits; only the payload of a NaN may differ.
//
// Everything here and in the kernels lives in the namespace of its instruction set and calls no
// function template or inline function from outside: the linker keeps one copy of an inline
// function, and a copy compiled for AVX-512 must never serve code that runs without it.
//
// An implementation provides, for V = F32x16:
//   V::zero()  V::splat(x)
//   load(p)  load_first(p, n)  store(p, v)  store_first(p, v, n)
//                        p: float* or Bf16* (widened; rounded to nearest even when stored), any
//                        alignment; the lanes from n on are 0 and are not touched in memory
//                        loads also int8_t*, as numbers
//   load_fp8(p)          e4m3fn codes as code * kFp8Unit, exactly; a NaN code reads as +-480
//   add sub mul div fma(a, b, c) = a b + c
//   max(a, b) = a > b ? a : b     min(a, b) = a < b ? a : b     so b where either is NaN
//   round_to_bf16(v)
//   reduce_add(v)        lane i + lane i+8, then +4, +2, +1
//   reduce_max(v)        the same tree
//   shift_into_exponent(v)        the bits of each lane << 23
//   kVectorRegisters     how many F32x16 the registers hold
#pragma once

#include <cstdint>

#include "base/bf16.h"

#ifndef TROUPE_ISA_NAMESPACE
#error "define TROUPE_ISA_NAMESPACE: each instruction set has its own namespace"
#endif

namespace troupe::layers::TROUPE_ISA_NAMESPACE {
// s eeee mmm is read as the float s 0000eeee mmm0..., subnormals included: only the exponent's bias
// differs (127, not 7).
inline constexpr float kFp8Unit = 0x1p-120f;
}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE

#if defined(__AVX512F__)
#include "layers/simd_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "layers/simd_avx2.h"
#else
#include "layers/simd_plain.h"
#endif

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// e^x within 2 ulp (the method and polynomial of Cephes expf, in fused steps). Never infinite and
// never stuck: 0 below -87.7 (results under 2^-126.5), e^88.376 from 88.376 on; NaN stays NaN.
template <class V>
inline V exp(V x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer n and leaves it in the
  // low mantissa bits; adding 127 too makes them the exponent field of 2^n (0, for n = -127).
  const V shift = V::splat(12582912.0f + 127.0f);
  x = max(V::splat(-88.0f), min(V::splat(88.376f), x));
  const V shifted = fma(x, V::splat(1.44269504f), shift);
  const V n = sub(shifted, shift);
  V r = fma(n, V::splat(-0.693359375f), x);
  r = fma(n, V::splat(2.12194440e-4f), r);

  V p = V::splat(1.9875691500e-4f);
  p = fma(p, r, V::splat(1.3981999507e-3f));
  p = fma(p, r, V::splat(8.3334519073e-3f));
  p = fma(p, r, V::splat(4.1665795894e-2f));
  p = fma(p, r, V::splat(1.6666665459e-1f));
  p = fma(p, r, V::splat(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), V::splat(1.0f));
  return mul(p, shift_into_exponent(shifted));
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
