// model/bpe.h: byte pair encoding of one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace troupe::model {

class Bpe {
 public:
  struct Merge {
    int32_t left, right, result;  // token ids
  };

  // `byte_ids` holds the token of each byte, -1 where the vocabulary has none. `merges` come in the
  // order of their rank; of two for the same pair the later one counts, as in the reference.
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

  const Rule* find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_;
  std::unordered_map<uint64_t, Rule> rules_;  // by the packed pair of ids
  std::vector<int32_t> results_;              // by rank
};

}  // namespace troupe::model
