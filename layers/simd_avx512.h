// layers/simd_avx512.h: F32x16 in one register (AVX-512 F, BW, DQ, VL). Included by simd.h only.
#pragma once

#include <immintrin.h>

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

inline constexpr int kVectorRegisters = 32;

struct F32x16 {
  __m512 v;

  static F32x16 zero() { return {_mm512_setzero_ps()}; }
  static F32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
};

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline F32x16 widen_bf16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32x16 load(const Bf16* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F32x16 load_first(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
inline F32x16 load_first(const Bf16* p, int64_t n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline F32x16 widen_int8(__m128i codes) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}
inline F32x16 load(const int8_t* p) {
  return widen_int8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32x16 load_first(const int8_t* p, int64_t n) {
  return widen_int8(_mm_maskz_loadu_epi8(first_lanes(n), p));
}
inline F32x16 load_fp8(const uint8_t* p) {
  // Sign extension leaves copies of s in the exponent's upper bits: masked away.
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i shifted = _mm512_slli_epi32(_mm512_cvtepi8_epi32(codes), 20);
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0x87f00000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(shifted, mask))};
}

// Rounded to bfloat16 in the upper half of each lane; the lower half is rubbish.
inline __m512i bf16_in_upper_half(F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(_mm512_add_epi32(bits, bias), nan, bits, _mm512_set1_epi32(0x400000));
}
inline F32x16 round_to_bf16(F32x16 a) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(bf16_in_upper_half(a), upper))};
}
inline __m256i narrow_to_bf16(F32x16 a) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bf16_in_upper_half(a), 16));
}

inline void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
inline void store(Bf16* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_to_bf16(a));
}
inline void store_first(float* p, F32x16 a, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
inline void store_first(Bf16* p, F32x16 a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_to_bf16(a));
}

inline F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline F32x16 shift_into_exponent(F32x16 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}

inline float reduce_add(F32x16 a) {
  const __m256 x8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 x4 = _mm_add_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_add_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_add_ss(x2, _mm_movehdup_ps(x2)));
}
inline float reduce_max(F32x16 a) {
  const __m256 x8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 x4 = _mm_max_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_max_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_max_ss(x2, _mm_movehdup_ps(x2)));
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
