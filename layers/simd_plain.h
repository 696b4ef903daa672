// layers/simd_plain.h: F32x16 as loops, for any machine. Included by simd.h only. It is compiled as
// all other code is, so it may call functions from outside.
#pragma once

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

// N is 16, or 1 where one value must go the way of a lane (layers/exp.h).
template <int N>
struct Lanes {
  float lane[N];

  static Lanes zero() { return splat(0.0f); }
  static Lanes splat(float x) {
    Lanes v;
    for (float& lane : v.lane) lane = x;
    return v;
  }
};
using F32x16 = Lanes<16>;

inline constexpr int kVectorRegisters = 1;  // 4 would hold one

inline F32x16 load_first(const float* p, int64_t n) {
  F32x16 v = F32x16::zero();
  for (int64_t i = 0; i < n; ++i) v.lane[i] = p[i];
  return v;
}
inline F32x16 load_first(const Bf16* p, int64_t n) {
  F32x16 v = F32x16::zero();
  for (int64_t i = 0; i < n; ++i) v.lane[i] = to_float(p[i]);
  return v;
}
inline F32x16 load_first(const int8_t* p, int64_t n) {
  F32x16 v = F32x16::zero();
  for (int64_t i = 0; i < n; ++i) v.lane[i] = static_cast<float>(p[i]);
  return v;
}
inline F32x16 load(const int8_t* p) { return load_first(p, 16); }
inline F32x16 load(const float* p) { return load_first(p, 16); }
inline F32x16 load(const Bf16* p) { return load_first(p, 16); }
inline F32x16 load_fp8(const uint8_t* p) {
  F32x16 v;
  for (int i = 0; i < 16; ++i) {
    const uint32_t code = p[i];
    v.lane[i] = __builtin_bit_cast(float, (code & 0x80u) << 24 | (code & 0x7fu) << 20);
  }
  return v;
}

inline F32x16 round_to_bf16(F32x16 a) {
  for (float& lane : a.lane) lane = troupe::round_to_bf16(lane);
  return a;
}

inline void store_first(float* p, F32x16 a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.lane[i];
}
inline void store_first(Bf16* p, F32x16 a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = to_bf16(a.lane[i]);
}
inline void store(float* p, F32x16 a) { store_first(p, a, 16); }
inline void store(Bf16* p, F32x16 a) { store_first(p, a, 16); }

template <int N>
inline Lanes<N> add(Lanes<N> a, Lanes<N> b) {
  for (int i = 0; i < N; ++i) a.lane[i] += b.lane[i];
  return a;
}
template <int N>
inline Lanes<N> sub(Lanes<N> a, Lanes<N> b) {
  for (int i = 0; i < N; ++i) a.lane[i] -= b.lane[i];
  return a;
}
template <int N>
inline Lanes<N> mul(Lanes<N> a, Lanes<N> b) {
  for (int i = 0; i < N; ++i) a.lane[i] *= b.lane[i];
  return a;
}
template <int N>
inline Lanes<N> div(Lanes<N> a, Lanes<N> b) {
  for (int i = 0; i < N; ++i) a.lane[i] /= b.lane[i];
  return a;
}
template <int N>
inline Lanes<N> max(Lanes<N> a, Lanes<N> b) {
  for (int i = 0; i < N; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
template <int N>
inline Lanes<N> min(Lanes<N> a, Lanes<N> b) {
  for (int i = 0; i < N; ++i) a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
template <int N>
inline Lanes<N> fma(Lanes<N> a, Lanes<N> b, Lanes<N> c) {
  for (int i = 0; i < N; ++i) a.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
  return a;
}

template <int N>
inline Lanes<N> shift_into_exponent(Lanes<N> a) {
  for (float& lane : a.lane)
    lane = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, lane) << 23);
  return a;
}

inline float reduce_add(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
  return a.lane[0];
}
inline float reduce_max(F32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
  return a.lane[0];
}

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
