// layers/simd_int8.h: sixteen int32 lanes that sum products of 8-bit numbers, exactly.
//
// Included by kernels after simd.h and under its rules. Integer sums have no rounding, so every
// instruction set gives the same bits however it cuts them.
//
// An implementation provides, for V = I32x16:
//   V::splat(x)
//   load_codes(p)        64 bytes, any alignment
//   splat4(p)            4 bytes to every lane
//   dot4(sum, w, x)      sum + the four products of the lane's bytes; w unsigned, x signed
//   add(a, b)
//   low_nibbles(v) high_nibbles(v)      bits 0-3, 4-7 of each byte
//   lookup(table, v)     table: 16 bytes; v: bytes below 16
//   to_float(v)          rounded to nearest even
//   load_exponents(p)    16 bytes e as 2^(e - 127), e from 0 to 254
//   store_low_bytes(p, f)               the lowest byte of the bits of each lane of an F32x16
#pragma once

#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

#if defined(__AVX512F__)

struct I32x16 {
  __m512i v;

  static I32x16 splat(int32_t x) { return {_mm512_set1_epi32(x)}; }
};

inline I32x16 load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline I32x16 splat4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return I32x16::splat(four);
}
// Not _mm512_dpbusd_epi32: g++ 12 copies and spills the sums around it.
inline I32x16 dot4(I32x16 sum, I32x16 w, I32x16 x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.v), "v"(x.v));
  return sum;
}
inline I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32x16 low_nibbles(I32x16 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline I32x16 high_nibbles(I32x16 a) { return low_nibbles({_mm512_srli_epi16(a.v, 4)}); }
inline I32x16 lookup(const uint8_t* table, I32x16 a) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), a.v)};
}
inline F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F32x16 load_exponents(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);
  return {_mm512_castsi512_ps(_mm512_max_epi32(bits, _mm512_set1_epi32(0x400000)))};
}
inline void store_low_bytes(int8_t* p, F32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(a.v)));
}

#elif defined(__AVX2__) && defined(__FMA__)

struct I32x16 {
  __m256i lo, hi;

  static I32x16 splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
};

inline I32x16 load_codes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline I32x16 splat4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return I32x16::splat(four);
}
// Bytes 0 and 2, then 1 and 3, as 16-bit numbers: vpmaddubsw would saturate.
inline __m256i dot4(__m256i sum, __m256i w, __m256i x) {
  const __m256i w_even = _mm256_and_si256(w, _mm256_set1_epi16(255));
  const __m256i w_odd = _mm256_srli_epi16(w, 8);
  const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
  const __m256i x_odd = _mm256_srai_epi16(x, 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w_even, x_even));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(w_odd, x_odd));
}
inline I32x16 dot4(I32x16 sum, I32x16 w, I32x16 x) {
  return {dot4(sum.lo, w.lo, x.lo), dot4(sum.hi, w.hi, x.hi)};
}
inline I32x16 add(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline I32x16 low_nibbles(I32x16 a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
inline I32x16 high_nibbles(I32x16 a) {
  return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)});
}
inline I32x16 lookup(const uint8_t* table, I32x16 a) {
  const __m256i bytes =
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(bytes, a.lo), _mm256_shuffle_epi8(bytes, a.hi)};
}
inline F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline __m256 widen_exponents(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
  return _mm256_castsi256_ps(_mm256_max_epi32(bits, _mm256_set1_epi32(0x400000)));
}
inline F32x16 load_exponents(const uint8_t* p) {
  return {widen_exponents(p), widen_exponents(p + 8)};
}
inline void store_low_bytes(int8_t* p, F32x16 a) {
  // Byte 0 of each lane to the front of its 128-bit half, then the halves' dwords side by side.
  const __m256i lowest =
      _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i lo = _mm256_shuffle_epi8(_mm256_castps_si256(a.lo), lowest);
  const __m256i hi = _mm256_shuffle_epi8(_mm256_castps_si256(a.hi), lowest);
  const __m256i pairs = _mm256_unpacklo_epi32(lo, hi);  // 0 2 . . | 1 3 . .
  const __m128i first = _mm256_castsi256_si128(pairs);
  const __m128i second = _mm256_extracti128_si256(pairs, 1);
  const __m128i mixed = _mm_unpacklo_epi32(first, second);  // 0 1 2 3
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), mixed);
}

#else

struct I32x16 {
  uint32_t lane[16];

  static I32x16 splat(int32_t x) {
    I32x16 v;
    for (uint32_t& lane : v.lane) lane = static_cast<uint32_t>(x);
    return v;
  }
};

inline I32x16 load_codes(const uint8_t* p) {
  I32x16 v;
  __builtin_memcpy(v.lane, p, sizeof v.lane);
  return v;
}
inline I32x16 splat4(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return I32x16::splat(four);
}
inline I32x16 dot4(I32x16 sum, I32x16 w, I32x16 x) {
  for (int i = 0; i < 16; ++i) {
    for (int shift = 0; shift < 32; shift += 8) {
      const int product = static_cast<uint8_t>(w.lane[i] >> shift) *
                          static_cast<int8_t>(static_cast<uint8_t>(x.lane[i] >> shift));
      sum.lane[i] += static_cast<uint32_t>(product);
    }
  }
  return sum;
}
inline I32x16 add(I32x16 a, I32x16 b) {
  for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
  return a;
}
inline I32x16 low_nibbles(I32x16 a) {
  for (uint32_t& lane : a.lane) lane &= 0x0f0f0f0fu;
  return a;
}
inline I32x16 high_nibbles(I32x16 a) {
  for (uint32_t& lane : a.lane) lane = lane >> 4 & 0x0f0f0f0fu;
  return a;
}
inline I32x16 lookup(const uint8_t* table, I32x16 a) {
  I32x16 out = I32x16::splat(0);
  for (int i = 0; i < 16; ++i)
    for (int shift = 0; shift < 32; shift += 8)
      out.lane[i] |= static_cast<uint32_t>(table[a.lane[i] >> shift & 15]) << shift;
  return out;
}
inline F32x16 to_float(I32x16 a) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<float>(static_cast<int32_t>(a.lane[i]));
  return out;
}
inline F32x16 load_exponents(const uint8_t* p) {
  F32x16 out;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = p[i] == 0 ? 0x400000u : uint32_t{p[i]} << 23;
    out.lane[i] = __builtin_bit_cast(float, bits);
  }
  return out;
}
inline void store_low_bytes(int8_t* p, F32x16 a) {
  for (int i = 0; i < 16; ++i)
    p[i] = static_cast<int8_t>(__builtin_bit_cast(uint32_t, a.lane[i]) & 255u);
}

#endif

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
