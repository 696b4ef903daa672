// model/mxfp4.h: OCP Microscaling FP4 as GPT-OSS stores it, turned into bf16, exactly.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bf16.h"

namespace troupe::model {

inline constexpr int64_t kMxfp4Block = 32;       // elements that share a scale
inline constexpr int64_t kMxfp4BlockBytes = 16;  // two codes a byte, the even element low

// Scales above this are no weight's: 6 * 2^(scale - 127) would not be finite (255 means NaN).
inline constexpr uint8_t kMxfp4MaxScale = 252;

// out[i] = value(code i) * 2^(scale - 127) for the 32 codes of a block, where the low three bits of
// a code stand for 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the fourth is the sign (OCP MX specification 1.0,
// section 5.3.3). scale <= kMxfp4MaxScale.
void dequantize_mxfp4(const std::byte* codes, uint8_t scale, Bf16* out);

}  // namespace troupe::model
