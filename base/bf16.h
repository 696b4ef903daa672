// base/bf16.h: bfloat16 as storage. Arithmetic is done in fp32.
#pragma once

#include <bit>
#include <cstdint>

namespace troupe {

struct Bf16 {
  uint16_t bits;
};

inline float to_float(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even; a NaN stays a NaN (its payload may change).
inline Bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return Bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return Bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline float round_to_bf16(float x) { return to_float(to_bf16(x)); }

}  // namespace troupe
