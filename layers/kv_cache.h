// layers/kv_cache.h: the paged cache of keys and values.
//
// A row is one position of one layer. With MLA the normed latent, then the rotated shared key:
//   [kv_lora_rank + qk_rope_head_dim] elements of the cache type
// with GQA the rotated keys of the rank's kv heads, then their values:
//   [kv_heads, head_dim], [kv_heads, head_dim]
// A sequence's rows lie in blocks of block_size positions; its block table names them in order. A
// block holds its positions' rows of all layers in one piece. Positions are absolute: writing a
// position again replaces it, which is how speculative tokens are rolled back.
//
// Block b lies at memory + b * stride_bytes(), also where b >= num_blocks: such blocks belong to
// other owners, whose pools are mapped there to be read (actors/kv_space.h). To those who read, a
// block is a block.
//
// With kInt8 the first int8_width elements of a row are codes, int8_group of them to a scale: MLA's
// latent (one scale), GQA's heads (one each). The others, MLA's rotated key, stay bf16. That is the
// C8 mode of the NPU recipes (cann-recipes-infer, DeepSeek-R1: nope_cache int8, rope_cache bf16).
//   value = code * scale; scale = max |x| / 127 of the row's group, or one given for the layer;
//   code = x / scale rounded to nearest even, [-128, 127] (what a given scale cannot reach is cut)
// A group with an element that is no finite number has the scale NaN; below 2^-100 all are zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bf16.h"
#include "base/matrix.h"

namespace troupe::layers {

enum class KvType : uint8_t { kF32, kBf16, kInt8 };

// A kInt8 row: scales [groups] fp32, the other elements in bf16, codes, padding to 4 bytes.
struct KvCacheShape {
  int num_layers = 0;
  int64_t num_blocks = 0;
  int block_size = 0;  // positions
  int64_t width = 0;   // elements of a row
  KvType type = KvType::kBf16;
  int64_t int8_width = 0;  // kInt8 only: a multiple of int8_group, at most width
  int64_t int8_group = 0;

  int64_t num_scales() const { return type == KvType::kInt8 ? int8_width / int8_group : 0; }
  size_t bf16_at() const { return num_scales() * sizeof(float); }
  size_t codes_at() const { return bf16_at() + (width - int8_width) * sizeof(Bf16); }
  size_t row_bytes() const;
  size_t block_bytes() const { return block_size * row_bytes(); }     // of one layer
  size_t stride_bytes() const { return num_layers * block_bytes(); }  // from block to block
  size_t bytes() const { return num_blocks * stride_bytes(); }
};

// A view of cache memory ([num_blocks][num_layers][block_size] rows) that somebody else owns.
class KvCache {
 public:
  KvCache() = default;
  // Of ids [num_blocks, num_blocks + foreign_blocks) those may be used whose memory is mapped.
  KvCache(const KvCacheShape& shape, std::byte* memory, int64_t foreign_blocks = 0)
      : shape_(shape), memory_(memory), end_block_(shape.num_blocks + foreign_blocks) {}

  const KvCacheShape& shape() const { return shape_; }
  std::byte* block(int layer, int64_t block) const;

  // The row of `position` of the sequence whose block table is given. The table must reach that
  // far.
  std::byte* row(int layer, std::span<const int32_t> block_table, int64_t position) const;

  // Stores row [width] (rounded to the cache's type) at `position` of the sequence whose block
  // table is given. `scales` [num_scales()]: those of the layer; empty: the row's own.
  // Into own blocks only.
  void write(int layer, std::span<const int32_t> block_table, int64_t position,
             std::span<const float> row, std::span<const float> scales = {}) const;

  // Element i of a row as attention reads it.
  float element(const std::byte* row, int64_t i) const;

  // All layers of a block become those of another, which may be a foreign one.
  void copy_block(int64_t from, int64_t to) const;

 private:
  KvCacheShape shape_;
  std::byte* memory_ = nullptr;
  int64_t end_block_ = 0;
};

// One query row: the token at `position` may see the rows [0, position] of its sequence.
struct KvQuery {
  std::span<const int32_t> block_table;
  int64_t position = 0;
  std::span<const int32_t> window_table = {};  // in place of block_table, for layers with a window
};

namespace reference {
// One group's codes; returns its scale. `scale`: the one that is given, or 0.
float quantize_kv(std::span<const float> x, float scale, int8_t* codes);
}  // namespace reference

}  // namespace troupe::layers
