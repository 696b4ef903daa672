// layers/peak_kernel.h: loops that do nothing but read, or nothing but compute.
#pragma once

#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// The sum of `count` floats, a multiple of 128: so that nothing may be left out.
inline float read_floats(const float* x, int64_t count) {
  F32x16 sums[8] = {};
  for (int64_t i = 0; i < count; i += 128) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] = add(sums[j], load(x + i + 16 * j));
  }
  for (int j = 1; j < 8; ++j) sums[0] = add(sums[0], sums[j]);
  return reduce_add(sums[0]);
}

// `rounds` fused multiply-adds in each of enough chains to hide their latency. Returns how many
// multiplications and additions those are.
inline int64_t fma_chains(int64_t rounds, float* sum) {
  constexpr int kChains = kVectorRegisters >= 32 ? 16 : kVectorRegisters >= 8 ? 6 : 1;
  F32x16 sums[kChains];  // all different, or the compiler would make them one
  for (int j = 0; j < kChains; ++j) sums[j] = F32x16::splat(static_cast<float>(j));
  const F32x16 half = F32x16::splat(0.5f), one = F32x16::splat(1.0f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) sums[j] = fma(sums[j], half, one);
  }
  for (int j = 1; j < kChains; ++j) sums[0] = add(sums[0], sums[j]);
  *sum = reduce_add(sums[0]);
  return rounds * kChains * 16 * 2;
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
