// model/text_stream.h: the text of an answer as its tokens arrive, up to the first stop string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/tokenizer.h"

namespace troupe::model {

// Gives out whole UTF-8 characters only, and never a part of a stop string: text that could still
// become one is held back. A stop string may begin and end inside tokens. The one that is complete
// first ends the text (of several the longest), so the text does not depend on where tokens are
// cut.
class TextStream {
 public:
  // `tokenizer` must outlive this. `stops`: none of them empty.
  explicit TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stops = {});

  // The text that may be shown after this token; may be empty.
  std::string push(int32_t id);
  // What was held back; the text ends here.
  std::string finish();
  // A stop string has come: push() and finish() give nothing more.
  bool stopped() const { return stopped_; }
  bool holding() const { return !held_.empty(); }  // text that could become a stop string

 private:
  // How much of a stop string the text ends with (Knuth, Morris, Pratt, 1977): constant time for a
  // byte, whatever clients choose as stop strings.
  struct Matcher {
    std::string stop;
    std::vector<size_t> border;  // [i]: longest proper prefix of stop[0, i] that also ends it
    size_t matched = 0;
  };
  static bool complete_after(Matcher& matcher, char byte);
  std::string show(const std::string& text);

  StreamDecoder decoder_;
  std::vector<Matcher> matchers_;
  std::string held_;  // what a stop string may begin with
  bool stopped_ = false;
};

}  // namespace troupe::model
