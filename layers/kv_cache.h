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
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/bf16.h"
#include "base/matrix.h"

namespace troupe::layers {

enum class KvType : uint8_t { kF32, kBf16 };

struct KvCacheShape {
  int num_layers = 0;
  int64_t num_blocks = 0;
  int block_size = 0;  // positions
  int64_t width = 0;   // elements of a row
  KvType type = KvType::kBf16;

  size_t row_bytes() const { return width * (type == KvType::kF32 ? sizeof(float) : sizeof(Bf16)); }
  size_t block_bytes() const { return block_size * row_bytes(); }     // of one layer
  size_t stride_bytes() const { return num_layers * block_bytes(); }  // from block to block
  size_t bytes() const { return num_blocks * stride_bytes(); }
};

// A view of cache memory ([num_blocks][num_layers][block_size][width]) that somebody else owns.
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
  // table is given. Into own blocks only.
  void write(int layer, std::span<const int32_t> block_table, int64_t position,
             std::span<const float> row) const;

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
};

}  // namespace troupe::layers
