// actors/block_pool.h: the KV blocks of one data-parallel rank, and what they hold for reuse.
//
// A block is free, in use by one or more tables, or cached: used by nobody, but its rows are kept
// until the block is needed for something else, the one unused for longest first.
//
// Published blocks can be shared. What a block holds is told by its key (the tokens whose rows it
// has) and by the content before it; both are compared, not only hashed. Ids of contents are never
// given twice, so a content whose predecessor has been evicted can no longer be found.
//
// Nothing is allocated after construction.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace troupe::actors {

class BlockPool {
 public:
  using Content = uint64_t;
  static constexpr Content kNoContent = 0;  // before the first block of every sequence
  static constexpr int32_t kGone = -1;      // in a table: a block that was given back

  // `key_tokens`: tokens that tell what a block holds.
  BlockPool(int64_t num_blocks, int key_tokens);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()) + cached_; }
  int64_t in_use() const { return num_blocks() - available(); }

  // How often a block has been taken to be written: whoever reads it from elsewhere compares.
  uint64_t generation(int32_t block) const { return blocks_[block].generation; }
  // From now on also told here, [num_blocks], before the block can be written.
  void show_generations(std::span<std::atomic<uint64_t>> shown);

  // Extends `table` to `blocks` entries: free blocks, lowest first, then cached ones. False, and
  // nothing taken, when too few are available.
  bool extend(std::vector<int32_t>& table, int64_t blocks);
  // Takes back one use of each block of `table`, and empties it.
  void release(std::vector<int32_t>& table);
  // Takes back one use of each of these blocks, and leaves kGone in their places.
  void give_back(std::span<int32_t> entries);

  // `block`, in use, holds `key` after `before`. The content's id: that of an equal one published
  // before, if there is one, which is then the one that is found.
  Content publish(int32_t block, Content before, std::span<const int32_t> key);
  struct Found {
    int32_t block = 0;
    Content content = kNoContent;
  };
  std::optional<Found> find(Content before, std::span<const int32_t> key);
  // As find(), and takes a use of the block.
  std::optional<Found> take(Content before, std::span<const int32_t> key);

 private:
  static constexpr int32_t kNone = -1;
  struct Block {
    Content content = kNoContent, before = kNoContent;
    uint64_t generation = 0;
    int32_t uses = 0;
    int32_t newer = kNone, older = kNone;  // among the cached
    int32_t next_in_bucket = kNone;
  };
  std::span<int32_t> key_of(int32_t block) const;
  int32_t& bucket(Content before, std::span<const int32_t> key);
  int32_t block_with(Content before, std::span<const int32_t> key);
  int32_t take_any();
  void end_use(int32_t block);
  void cache(int32_t block);    // to the newest end
  void uncache(int32_t block);  // out of the middle
  void forget(int32_t block);

  std::vector<Block> blocks_;
  size_t key_tokens_;
  std::unique_ptr<int32_t[]> keys_;  // [num_blocks, key_tokens], of published blocks
  std::vector<int32_t> free_;        // a stack, lowest on top at the start
  std::vector<int32_t> buckets_;     // first published block of each hash
  int32_t newest_ = kNone, oldest_ = kNone;
  int64_t cached_ = 0;
  Content last_content_ = kNoContent;
  std::span<std::atomic<uint64_t>> shown_generations_;
};

}  // namespace troupe::actors
