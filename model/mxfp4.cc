#include "model/mxfp4.h"

#include <cmath>

namespace troupe::model {

void dequantize_mxfp4(const std::byte* codes, uint8_t scale, Bf16* out) {
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float unit = std::ldexp(1.0f, scale - 127);
  Bf16 values[16];
  for (int i = 0; i < 8; ++i) {
    values[i] = to_bf16(kValues[i] * unit);
    values[i + 8] = to_bf16(-kValues[i] * unit);
  }
  for (int64_t i = 0; i < kMxfp4BlockBytes; ++i) {
    const auto byte = static_cast<uint8_t>(codes[i]);
    out[2 * i] = values[byte & 15];
    out[2 * i + 1] = values[byte >> 4];
  }
}

}  // namespace troupe::model
