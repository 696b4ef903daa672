#include "actors/kv_space.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"

namespace troupe::actors {

namespace {

constexpr size_t kForeignBytes = size_t{1} << 40;

size_t round_up(size_t bytes) { return (bytes + kKvPage - 1) / kKvPage * kKvPage; }

}  // namespace

size_t kv_section_bytes(const layers::KvCacheShape& shape) { return round_up(shape.bytes()); }

int64_t kv_section_alignment(const layers::KvCacheShape& shape) {
  return static_cast<int64_t>(kKvPage / std::gcd(kKvPage, shape.stride_bytes()));
}

int64_t most_foreign_blocks(const layers::KvCacheShape& shape) {
  const auto fit = static_cast<int64_t>(kForeignBytes / shape.stride_bytes());
  return std::min(fit, std::numeric_limits<int32_t>::max() - shape.num_blocks);
}

KvSpace::KvSpace(const layers::KvCacheShape& shape, int64_t foreign_blocks, int fd, size_t offset)
    : shape_(shape), foreign_blocks_(foreign_blocks) {
  const size_t own = kv_section_bytes(shape);
  const size_t all = (shape.num_blocks + foreign_blocks) * shape.stride_bytes();
  range_ = Mapping::reserve(std::max(own, round_up(all)));
  range_.put(0, own, Mapping::Access::kReadWrite, fd, offset);
}

void KvSpace::map(int64_t first_block, int64_t blocks, int fd, size_t offset) {
  const int64_t end = shape_.num_blocks + foreign_blocks_;
  if (first_block < shape_.num_blocks || first_block % kv_section_alignment(shape_) != 0 ||
      blocks <= 0 || blocks > end - first_block)
    throw_rank_error("blocks [{}, +{}) are no place for a foreign section, of ids up to {}",
                     first_block, blocks, end);
  const size_t at = first_block * shape_.stride_bytes();
  const size_t bytes = round_up(blocks * shape_.stride_bytes());
  range_.put(at, bytes, Mapping::Access::kReadOnly, fd, offset);
}

}  // namespace troupe::actors
