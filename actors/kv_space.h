// actors/kv_space.h: the addresses at which a rank sees KV blocks: its own section of the launch's
// shared memory, and behind it the sections of other launches' ranks, which it only reads.
//
// All lie in one reserved range, each at a multiple of the distance between blocks, so that one
// number names a block wherever it lies and whoever reads it asks nothing (layers/kv_cache.h).
#pragma once

#include <cstdint>

#include "base/memory.h"
#include "layers/kv_cache.h"

namespace troupe::actors {

inline constexpr size_t kKvPage = 4096;

size_t kv_section_bytes(const layers::KvCacheShape& shape);  // of one rank, whole pages

// Foreign sections begin at ids that are multiples of this, past the own blocks: where a page does.
int64_t kv_section_alignment(const layers::KvCacheShape& shape);
// Ids that are reserved where foreign blocks are wanted: as many as fit a tebibyte of addresses.
int64_t most_foreign_blocks(const layers::KvCacheShape& shape);

class KvSpace {
 public:
  KvSpace() = default;
  // Maps the section at `offset` of `fd`. std::runtime_error where the range cannot be had.
  KvSpace(const layers::KvCacheShape& shape, int64_t foreign_blocks, int fd, size_t offset);

  layers::KvCache cache() const { return {shape_, range_.data(), foreign_blocks_}; }

  // Maps the section of another rank, or nothing (fd -1), at ids [first_block, +blocks), which lie
  // past the own blocks. No other thread reads there. RankError when that is no place.
  void map(int64_t first_block, int64_t blocks, int fd, size_t offset);

 private:
  layers::KvCacheShape shape_;
  int64_t foreign_blocks_ = 0;
  Mapping range_;
};

}  // namespace troupe::actors
