#include "actors/token_payload.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace troupe::actors {

namespace {

constexpr float kMaxInt8 = 127;

size_t padded(size_t bytes) { return (bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float); }

// The scale comes first, then the numbers.
void pack_int8(std::span<const float> row, std::byte* to) {
  float largest = 0;
  bool finite = true;
  for (const float x : row) {
    largest = std::max(largest, std::abs(x));
    finite &= std::isfinite(x);
  }
  const float scale = finite ? largest / kMaxInt8 : std::numeric_limits<float>::quiet_NaN();
  std::memcpy(to, &scale, sizeof(scale));
  auto* q = reinterpret_cast<int8_t*>(to + sizeof(scale));
  for (size_t i = 0; i < row.size(); ++i)
    q[i] =
        scale > 0
            ? static_cast<int8_t>(std::clamp(std::nearbyint(row[i] / scale), -kMaxInt8, kMaxInt8))
            : int8_t{0};
}

void unpack_int8(const std::byte* from, layers::Rounding rounding, std::span<float> row) {
  float scale;
  std::memcpy(&scale, from, sizeof(scale));
  const auto* q = reinterpret_cast<const int8_t*>(from + sizeof(scale));
  for (size_t i = 0; i < row.size(); ++i) row[i] = scale * static_cast<float>(q[i]);
  if (rounding == layers::Rounding::kBf16)
    for (float& x : row) x = round_to_bf16(x);
}

}  // namespace

size_t payload_bytes(PayloadFormat format, size_t hidden) {
  switch (format) {
    case PayloadFormat::kF32:
      return hidden * sizeof(float);
    case PayloadFormat::kBf16:
      return padded(hidden * sizeof(Bf16));
    case PayloadFormat::kInt8:
      return sizeof(float) + padded(hidden);
  }
  TROUPE_CHECK(false, "PayloadFormat {}", static_cast<int>(format));
}

void pack_payload(std::span<const float> row, PayloadFormat format, std::byte* to) {
  if (format == PayloadFormat::kInt8) return pack_int8(row, to);
  pack_row(row, format == PayloadFormat::kBf16 ? RowFormat::kBf16 : RowFormat::kF32, to);
}

void unpack_payload(const std::byte* from, PayloadFormat format, layers::Rounding rounding,
                    std::span<float> row) {
  if (format == PayloadFormat::kInt8) return unpack_int8(from, rounding, row);
  unpack_row(from, format == PayloadFormat::kBf16 ? RowFormat::kBf16 : RowFormat::kF32, row);
}

}  // namespace troupe::actors
