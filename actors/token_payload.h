// actors/token_payload.h: a token's row as dispatch carries it to experts.
#pragma once

#include <cstddef>
#include <span>

#include "actors/row_exchange.h"

namespace troupe::actors {

// Rows in the dtype lose nothing. kInt8 halves what bf16 moves: 8-bit numbers with one scale for
// the row, as npu_dynamic_quant makes them:
//   scale = max |x| / 127,  q = round(x / scale) to nearest even
// A row with an infinity or NaN arrives as NaNs.
enum class PayloadFormat { kF32, kBf16, kInt8 };

// Of a row of `hidden` numbers; a multiple of 4.
size_t payload_bytes(PayloadFormat format, size_t hidden);
// `to` is aligned to 4 bytes, payload_bytes long.
void pack_payload(std::span<const float> row, PayloadFormat format, std::byte* to);
// kInt8: row = round(scale * q), rounded to the dtype like any row that enters an expert.
void unpack_payload(const std::byte* from, PayloadFormat format, layers::Rounding rounding,
                    std::span<float> row);

}  // namespace troupe::actors
