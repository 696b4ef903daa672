// layers/packed_matrix.h: weights in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bf16.h"

namespace troupe::layers {

inline constexpr int kTpLeaves = 16;   // leaf i of K is [floor(i K / 16), floor((i+1) K / 16))
inline constexpr int kTileRows = 16;   // rows of W that the kernel computes at once
inline constexpr int kFp8Block = 128;  // DeepSeek's fp8: one fp32 scale per 128 x 128 block

enum class WeightType : uint8_t { kF32, kBf16, kFp8, kInt8, kInt4, kMxfp4 };

// Which part of the K inputs a matrix holds: leaves [first_leaf, first_leaf + num_leaves) of
// `total_leaves` that cut [0, k_total).
struct LeafRange {
  int64_t k_total = 0;
  int total_leaves = 1;
  int first_leaf = 0;
  int num_leaves = 1;

  int64_t leaf_begin(int leaf) const { return leaf * k_total / total_leaves; }
  int64_t k_begin() const { return leaf_begin(first_leaf); }
  int64_t k_end() const { return leaf_begin(first_leaf + num_leaves); }
  bool operator==(const LeafRange&) const = default;
};

// A weight [rows, cols] in tile order; rows are padded with zeros to a multiple of kTileRows.
//
//   data    [tiles][cols][kTileRows]                 element (16 t + lane, k) at [t][k][lane]
//   scales  [tiles][k_blocks][kTileRows]   kFp8 only: the weight is code * scale, rounded to fp32;
//           block b covers the inputs k with (k_begin + k) / 128 == k_begin / 128 + b, so that a
//           shard may begin inside a block
//
// kInt8, kInt4 and kMxfp4 lie as layers/quantize.h says, scales inside `data`.
// A new type says here how its elements lie, and adds a case to every switch over WeightType (the
// compiler names them); its packing goes to pack_rows.cc or a file beside it.
// The memory belongs to whoever gave it to plan(): the loader's arena.
struct PackedMatrix {
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;  // = leaves.k_end() - leaves.k_begin()
  LeafRange leaves;
  std::byte* data = nullptr;
  float* scales = nullptr;

  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t k_blocks() const;    // kFp8: blocks that [k_begin, k_end) touches; else 0
  size_t data_bytes() const;   // of `data`
  size_t scale_bytes() const;  // of `scales`; 0 unless kFp8
  size_t bytes() const { return data_bytes() + scale_bytes(); }
};

// Describes a matrix without memory: rows x (the inputs of `leaves`). Set data and scales (64-byte
// aligned, data_bytes() and scale_bytes() long) before pack_rows.
PackedMatrix plan_packed(WeightType type, int64_t rows, const LeafRange& leaves);

// Rows [first * kTileRows, (first + count) * kTileRows) of w, as far as it has them: a view of the
// same memory. Threads share a product by tiles: each takes a range of them and those columns of y.
PackedMatrix tile_range(const PackedMatrix& w, int64_t first, int64_t count);

// Rows of a checkpoint tensor, as stored: [rows, k_total], row-major.
struct SourceRows {
  enum class Type : uint8_t { kF32, kBf16, kFp8, kInt8 };
  Type type = Type::kF32;
  const std::byte* data = nullptr;  // first row to pack
  int64_t row_stride = 0;           // elements
  // kFp8: scales [ceil(out / 128), ceil(in / 128)] of the whole tensor, and where the first
  // row to pack lies in it. kInt8: one scale for each row of the whole tensor.
  const float* scales = nullptr;
  int64_t scale_stride = 0;
  int64_t first_row = 0;
};

// Writes `count` source rows into rows [dst_row, dst_row + count) of `matrix`, inputs
// [k_begin, k_end) of them. Allowed conversions: kF32 -> kF32, kBf16; kBf16 -> kF32, kBf16;
// kFp8 -> kFp8 (codes kept), kF32 (code * scale exactly), kBf16 (that, rounded); kInt8 -> kInt8
// (codes kept), kF32, kBf16; kF32, kBf16, kFp8 -> kInt8, kInt4, kMxfp4 (layers/quantize.h: `source`
// must hold whole rows).
// A NaN code gives its row and block the scale NaN: the sums are NaN all the same, and the kernels
// need not know that code. The padding rows must be zero already (fresh mappings are).
void pack_rows(PackedMatrix& matrix, int64_t dst_row, int64_t count, const SourceRows& source);

// row[k] = the value of source row `i`, input k: codes times their scales, in fp32. For all inputs
// from 0 on that `row` has room for.
void widen_row(const SourceRows& source, int64_t i, std::span<float> row);

// The value of an fp8 e4m3fn code (1-4-3 bits, bias 7, no infinities, 0x7f and 0xff are NaN).
float fp8_e4m3_to_float(uint8_t code);

}  // namespace troupe::layers
