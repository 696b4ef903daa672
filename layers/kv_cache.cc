#include "layers/kv_cache.h"

#include <cstring>

#include "base/error.h"

namespace troupe::layers {

std::byte* KvCache::block(int layer, int64_t block) const {
  TROUPE_CHECK(layer >= 0 && layer < shape_.num_layers, "layer {} of {}", layer, shape_.num_layers);
  TROUPE_CHECK(block >= 0 && block < shape_.num_blocks, "block {} of {}", block, shape_.num_blocks);
  return memory_ + layer * shape_.layer_bytes() + block * shape_.block_bytes();
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
  if (shape_.type == KvType::kF32) {
    std::memcpy(destination, row.data(), row.size_bytes());
    return;
  }
  Bf16* rounded = reinterpret_cast<Bf16*>(destination);
  for (size_t i = 0; i < row.size(); ++i) rounded[i] = to_bf16(row[i]);
}

}  // namespace troupe::layers
