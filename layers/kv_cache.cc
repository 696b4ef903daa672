#include "layers/kv_cache.h"

#include <cstring>

#include "base/error.h"

namespace troupe::layers {

std::byte* KvCache::block(int layer, int64_t block) const {
  TROUPE_CHECK(layer >= 0 && layer < shape_.num_layers, "layer {} of {}", layer, shape_.num_layers);
  TROUPE_CHECK(block >= 0 && block < end_block_, "block {} of {}", block, end_block_);
  return memory_ + block * shape_.stride_bytes() + layer * shape_.block_bytes();
}

std::byte* KvCache::row(int layer, std::span<const int32_t> block_table, int64_t position) const {
  TROUPE_CHECK(position >= 0 && shape_.block_size > 0, "position {}, blocks of {}", position,
               shape_.block_size);
  const size_t entry = static_cast<size_t>(position / shape_.block_size);
  TROUPE_CHECK(entry < block_table.size(), "position {} is past a table of {} blocks of {}",
               position, block_table.size(), shape_.block_size);
  return block(layer, block_table[entry]) + (position % shape_.block_size) * shape_.row_bytes();
}

void KvCache::write(int layer, std::span<const int32_t> block_table, int64_t position,
                    std::span<const float> row) const {
  TROUPE_CHECK(static_cast<int64_t>(row.size()) == shape_.width, "a row of {} for a cache of {}",
               row.size(), shape_.width);
  std::byte* destination = this->row(layer, block_table, position);
  TROUPE_CHECK(block_table[position / shape_.block_size] < shape_.num_blocks,
               "position {} lies in foreign block {}", position,
               block_table[position / shape_.block_size]);
  if (shape_.type == KvType::kF32) {
    std::memcpy(destination, row.data(), row.size_bytes());
    return;
  }
  Bf16* rounded = reinterpret_cast<Bf16*>(destination);
  for (size_t i = 0; i < row.size(); ++i) rounded[i] = to_bf16(row[i]);
}

void KvCache::copy_block(int64_t from, int64_t to) const {
  TROUPE_CHECK(to < shape_.num_blocks, "a copy into foreign block {}", to);
  std::memcpy(block(0, to), block(0, from), shape_.stride_bytes());
}

}  // namespace troupe::layers
