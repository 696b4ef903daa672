#include "layers/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "layers/kernels.h"
#include "layers/segments.h"

namespace troupe::layers {

size_t KvCacheShape::row_bytes() const {
  switch (type) {
    case KvType::kF32:
      return width * sizeof(float);
    case KvType::kBf16:
      return width * sizeof(Bf16);
    case KvType::kInt8:
      return (codes_at() + int8_width + 3) / 4 * 4;
  }
  TROUPE_CHECK(false, "KV type {}", static_cast<int>(type));
}

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
                    std::span<const float> row, std::span<const float> scales) const {
  TROUPE_CHECK(std::ssize(row) == shape_.width &&
                   (scales.empty() || std::ssize(scales) == shape_.num_scales()),
               "a row of {} with {} scales for a cache of {} with {}", row.size(), scales.size(),
               shape_.width, shape_.num_scales());
  std::byte* destination = this->row(layer, block_table, position);
  TROUPE_CHECK(block_table[position / shape_.block_size] < shape_.num_blocks,
               "position {} lies in foreign block {}", position,
               block_table[position / shape_.block_size]);
  if (shape_.type == KvType::kF32) {
    std::memcpy(destination, row.data(), row.size_bytes());
    return;
  }
  auto* codes = reinterpret_cast<int8_t*>(destination + shape_.codes_at());
  for (int64_t g = 0; g < shape_.num_scales(); ++g) {
    const float scale =
        kernels().quantize_kv(row.data() + g * shape_.int8_group, shape_.int8_group,
                              scales.empty() ? 0 : scales[g], codes + g * shape_.int8_group);
    std::memcpy(destination + g * sizeof(float), &scale, sizeof(scale));
  }
  Bf16* rounded = reinterpret_cast<Bf16*>(destination + shape_.bf16_at());
  for (const float x : row.subspan(shape_.int8_width)) *rounded++ = to_bf16(x);
}

float KvCache::element(const std::byte* row, int64_t i) const {
  if (shape_.type == KvType::kF32) return reinterpret_cast<const float*>(row)[i];
  if (i >= shape_.int8_width)
    return to_float(reinterpret_cast<const Bf16*>(row + shape_.bf16_at())[i - shape_.int8_width]);
  const float scale = reinterpret_cast<const float*>(row)[i / shape_.int8_group];
  return static_cast<float>(reinterpret_cast<const int8_t*>(row + shape_.codes_at())[i]) * scale;
}

float reference::quantize_kv(std::span<const float> x, float scale, int8_t* codes) {
  float magnitude = 0;
  bool finite = true;
  for (const float value : x) {
    finite = finite && std::isfinite(value);
    magnitude = std::max(magnitude, std::abs(value));
  }
  std::fill_n(codes, x.size(), int8_t{0});
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  if (scale == 0 && magnitude < kSmallestMagnitude) return 0;
  const float factor = scale == 0 ? 127 / magnitude : 1 / scale;
  for (size_t i = 0; i < x.size(); ++i)
    codes[i] = static_cast<int8_t>(std::nearbyint(std::clamp(x[i] * factor, -128.0f, 127.0f)));
  return scale == 0 ? magnitude / 127 : scale;
}

void KvCache::copy_block(int64_t from, int64_t to) const {
  TROUPE_CHECK(to < shape_.num_blocks, "a copy into foreign block {}", to);
  std::memcpy(block(0, to), block(0, from), shape_.stride_bytes());
}

}  // namespace troupe::layers
