// actors/block_pool.h: the free KV blocks of one data-parallel rank.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace troupe::actors {

class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  // Extends `table` to `blocks` entries, lowest free block first. False, and nothing taken, when
  // too few are free.
  bool extend(std::vector<int32_t>& table, int64_t blocks);
  // Gives all blocks of `table` back and empties it.
  void release(std::vector<int32_t>& table);

 private:
  std::vector<int32_t> free_;  // a stack, lowest on top at the start
};

}  // namespace troupe::actors
