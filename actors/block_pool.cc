#include "actors/block_pool.h"

namespace troupe::actors {

BlockPool::BlockPool(int64_t num_blocks) : free_(num_blocks) {
  for (int64_t i = 0; i < num_blocks; ++i) free_[i] = static_cast<int32_t>(num_blocks - 1 - i);
}

bool BlockPool::extend(std::vector<int32_t>& table, int64_t blocks) {
  const int64_t missing = blocks - static_cast<int64_t>(table.size());
  if (missing > free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    table.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void BlockPool::release(std::vector<int32_t>& table) {
  free_.insert(free_.end(), table.rbegin(), table.rend());
  table.clear();
}

}  // namespace troupe::actors
