#include "actors/block_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/error.h"

namespace troupe::actors {

BlockPool::BlockPool(int64_t num_blocks, int key_tokens)
    : blocks_(num_blocks),
      key_tokens_(key_tokens),
      keys_(std::make_unique_for_overwrite<int32_t[]>(num_blocks * key_tokens)),
      buckets_(std::bit_ceil(static_cast<size_t>(num_blocks) + 1), kNone) {
  free_.reserve(num_blocks);
  for (int64_t i = num_blocks; i-- > 0;) free_.push_back(static_cast<int32_t>(i));
}

std::span<int32_t> BlockPool::key_of(int32_t block) const {
  return {keys_.get() + block * key_tokens_, key_tokens_};
}

int32_t& BlockPool::bucket(Content before, std::span<const int32_t> key) {
  uint64_t hash = before;
  for (const int32_t token : key) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  return buckets_[hash & (buckets_.size() - 1)];
}

int32_t BlockPool::block_with(Content before, std::span<const int32_t> key) {
  TROUPE_CHECK(key.size() == key_tokens_, "{} tokens instead of {}", key.size(), key_tokens_);
  int32_t block = bucket(before, key);
  while (block != kNone &&
         !(blocks_[block].before == before && std::ranges::equal(key_of(block), key)))
    block = blocks_[block].next_in_bucket;
  return block;
}

void BlockPool::cache(int32_t block) {
  blocks_[block].older = newest_;
  blocks_[block].newer = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].newer) = block;
  newest_ = block;
  ++cached_;
}

void BlockPool::uncache(int32_t block) {
  const Block& b = blocks_[block];
  (b.newer == kNone ? newest_ : blocks_[b.newer].older) = b.older;
  (b.older == kNone ? oldest_ : blocks_[b.older].newer) = b.newer;
  --cached_;
}

void BlockPool::forget(int32_t block) {
  Block& b = blocks_[block];
  int32_t* link = &bucket(b.before, key_of(block));
  while (*link != block) link = &blocks_[*link].next_in_bucket;
  *link = b.next_in_bucket;
  b.content = b.before = kNoContent;
}

void BlockPool::show_generations(std::span<std::atomic<uint64_t>> shown) {
  TROUPE_CHECK(shown.size() == blocks_.size(), "{} of {} blocks", shown.size(), blocks_.size());
  shown_generations_ = shown;
}

int32_t BlockPool::take_any() {
  int32_t block = oldest_;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    uncache(block);
    forget(block);
  }
  ++blocks_[block].generation;
  if (!shown_generations_.empty()) shown_generations_[block].store(blocks_[block].generation);
  return block;
}

bool BlockPool::extend(std::vector<int32_t>& table, int64_t blocks) {
  const int64_t missing = blocks - static_cast<int64_t>(table.size());
  if (missing > available()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    table.push_back(take_any());
    blocks_[table.back()].uses = 1;
  }
  return true;
}

void BlockPool::end_use(int32_t block) {
  TROUPE_CHECK(blocks_[block].uses > 0, "block {} is not in use", block);
  if (--blocks_[block].uses > 0) return;
  if (blocks_[block].content != kNoContent)
    cache(block);
  else
    free_.push_back(block);
}

// The end of a sequence becomes free, or old, before its beginning, without which it is useless.
void BlockPool::release(std::vector<int32_t>& table) {
  for (; !table.empty(); table.pop_back())
    if (table.back() != kGone) end_use(table.back());
}

void BlockPool::give_back(std::span<int32_t> entries) {
  for (int32_t& block : entries) end_use(std::exchange(block, kGone));
}

BlockPool::Content BlockPool::publish(int32_t block, Content before, std::span<const int32_t> key) {
  TROUPE_CHECK(blocks_[block].uses > 0, "block {} is not in use", block);
  if (const int32_t equal = block_with(before, key); equal != kNone) return blocks_[equal].content;
  std::ranges::copy(key, key_of(block).begin());
  int32_t& first = bucket(before, key);
  blocks_[block].content = ++last_content_;
  blocks_[block].before = before;
  blocks_[block].next_in_bucket = first;
  first = block;
  return last_content_;
}

std::optional<BlockPool::Found> BlockPool::find(Content before, std::span<const int32_t> key) {
  const int32_t block = block_with(before, key);
  if (block == kNone) return std::nullopt;
  return Found{block, blocks_[block].content};
}

std::optional<BlockPool::Found> BlockPool::take(Content before, std::span<const int32_t> key) {
  const auto found = find(before, key);
  if (found && blocks_[found->block].uses++ == 0) uncache(found->block);
  return found;
}

}  // namespace troupe::actors
