// model/pretokenizer.h: cuts text into the pieces within which BPE merges.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/regex.h"

namespace troupe::model {

// A "Split" of tokenizer.json, or a "Digits", which is one.
struct SplitStep {
  enum class Behavior {
    kIsolated,  // matches and what lies between them are pieces
    kRemoved,   // only what lies between the matches; with `invert` only the matches
  };
  std::string pattern;
  bool is_regex = true;  // in Oniguruma's syntax
  Behavior behavior = Behavior::kIsolated;
  bool invert = false;
};

// A Sequence of splits that ends with ByteLevel.
struct PreTokenizerConfig {
  std::vector<SplitStep> splits;
  bool add_prefix_space = false;  // a space before each piece that starts without one
  bool use_regex = false;         // then GPT-2's pattern splits the pieces further
};

class PreTokenizer {
 public:
  static constexpr size_t kMaxSplits = 16;

  // At most kMaxSplits splits. Throws std::invalid_argument when a pattern is not supported.
  explicit PreTokenizer(PreTokenizerConfig config);

  // Calls `piece` with each piece in order; the view is valid during the call only.
  // `text` is valid UTF-8. Throws UserError as Regex::Matches does.
  using PieceSink = std::function<void(std::string_view piece)>;
  void for_each_piece(std::string_view text, const PieceSink& piece) const;

 private:
  void split_from(size_t step, std::string_view text, std::vector<Regex::Scratch>& scratch,
                  const PieceSink& piece) const;

  PreTokenizerConfig config_;
  std::vector<Regex> patterns_;  // of config_.splits, then GPT-2's if it is used
};

}  // namespace troupe::model
