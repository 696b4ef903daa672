// model/bpe.h: byte pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace troupe::model {

class Bpe {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
    int32_t rank;                 // merges of one rank have one result
  };

  // `byte_ids` holds the token of each byte, -1 where the vocabulary has none. Of two merges for
  // the same pair the later one counts, as in the reference.
  Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges);

  // Appends the tokens of `piece`: starting from bytes, the pair of lowest rank is merged first,
  // the leftmost of equals, until no pair is left. O(n log n) in the bytes of the piece. Throws
  // UserError when the piece holds a byte without a token.
  void encode(std::string_view piece, std::vector<int32_t>& ids) const;

 private:
  struct Rule {
    int32_t rank, result;
  };
  class Word;

  // Linear probing from the hash of the pair. At most half of the slots are taken.
  struct Slot {
    uint64_t pair = kEmpty;  // two ids
    Rule rule = {};
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  size_t slot_of(uint64_t pair) const;  // where it is, or would be
  const Rule* find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Slot> slots_;       // a power of two
  std::vector<int32_t> results_;  // by rank
};

}  // namespace troupe::model
