// model/added_tokens.h: tokens that are cut out of a text before anything else looks at it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/regex.h"

namespace troupe::model {

// One of tokenizer.json's added_tokens.
struct AddedToken {
  int32_t id;
  std::string content;       // not empty
  bool single_word = false;  // only where no letter, mark, digit or _ touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool normalized = false;   // looked for in a second pass, in what the first one left
  bool special = false;      // left out of decoded text
};

// A stretch of text: a token, or text between tokens (token -1).
struct Segment {
  std::string_view text;
  int32_t token = -1;
};

// Finds the tokens of one pass: the leftmost, and of those that start there the longest.
class AddedTokenSplitter {
 public:
  // Bounds the steps per byte of text.
  static constexpr size_t kMaxContentBytes = 1024;

  explicit AddedTokenSplitter(std::vector<AddedToken> tokens);

  // Appends the segments of `text`, in order; none is an empty text.
  void split(std::string_view text, std::vector<Segment>& segments) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;
  bool stands_alone(std::string_view before, std::string_view after) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<uint64_t, uint32_t> edges_;  // trie: node << 8 | byte -> node; the root is 0
  std::unordered_map<uint32_t, size_t> ends_;     // node where a token ends -> index in tokens_
  Regex word_;
};

}  // namespace troupe::model
