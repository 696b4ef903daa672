// layers/quantize.h: 8-bit inputs and 4- and 8-bit weights: how they are cut, scaled and rounded.
//
// Weights, and inputs for them, are quantised in segments (layers/segments.h). For kInt8 a segment
// is a leaf: an input is scaled per token, of a row-parallel product per (token, leaf); a weight
// per output row, over the whole row of the checkpoint whatever part of it is packed. For kInt4 and
// kMxfp4 it is a group of 32 inputs, or the part of one inside a leaf: an input is scaled per
// (token, segment), a weight per (output row, group). So neither depends on the layout.
//
//   inputs   scale = max |x| / 127, code = x / scale rounded to nearest even, [-127, 127]
//   kInt8    the same over the weights of a row, or the checkpoint's codes and scales
//   kInt4    code 0..15 means (code - 8) scale; scale = m / -8, rounded to bf16, m the weight of
//            largest magnitude (llama.cpp: quantize_row_q4_0_ref)
//   kMxfp4   e2m1 codes times 2^(e - 127): OCP Microscaling Formats 1.0, sections 5.3.3 and 6.3
//
// An input or a weight that is no finite number gives its segment, group or row the scale NaN: what
// is computed from it is NaN. Where the largest magnitude is below 2^-100 all count as zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/matrix.h"
#include "layers/packed_matrix.h"

namespace troupe::layers {

inline constexpr int64_t kQuantGroup = 32;  // inputs that share a scale: kInt4, kMxfp4

inline bool is_quantized(WeightType type) {
  return type == WeightType::kInt8 || type == WeightType::kInt4 || type == WeightType::kMxfp4;
}

// How a quantised matrix, and rows for it, lie in memory.
//
//   a tile: scales [segments][kTileRows], padding to 64 bytes, codes [padded_cols / 8][chunk]: what
//   is read ahead of one tile's end are the next one's scales
//     kInt8    chunk: inputs 0-3, then 4-7, each [kTileRows][4] codes + 128; float scales, one
//              segment for all leaves
//     kInt4    chunk: [kTileRows][4], input i in the low bits and i + 4 in the high bits; bf16
//     scales kMxfp4   the same; e8m0 scales
//   a row of inputs: codes [padded_cols], padding; float scales [segments]; int32 offsets
//   [segments]:
//     minus what the weight codes' offset (128, 8, 12 halves) adds to a dot product with them
struct QuantizedShape {
  int64_t group_cols = 0;    // inputs of a group; beyond every leaf for kInt8
  int64_t group_offset = 0;  // inputs cut off the first group
  int64_t padded_cols = 0;
  int64_t segments = 0;  // of all leaves
  int weight_offset = 0;
  int64_t tile_codes_at = 0, tile_bytes = 0;
  int64_t row_scales_at = 0, row_offsets_at = 0, row_bytes = 0;
};

QuantizedShape quantized_shape(WeightType type, const LeafRange& leaves);

// x [rows, inputs of `leaves`] as rows of inputs for weights of that type. out: x.rows times
// row_bytes, 64-byte aligned.
void quantize_rows(WeightType type, const LeafRange& leaves, Matrix<const float> x, std::byte* out);

// pack_rows (layers/packed_matrix.h) for quantised matrices. `source` holds whole rows.
void pack_quantized_rows(PackedMatrix& matrix, int64_t dst_row, int64_t count,
                         const SourceRows& source);

// The value of an e2m1 code (1-2-1 bits).
float e2m1_to_float(int code);

namespace reference {
// The definition, one segment after the other.
void quantize_rows(WeightType type, const LeafRange& leaves, Matrix<const float> x, std::byte* out);
}  // namespace reference

}  // namespace troupe::layers
