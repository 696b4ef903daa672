#include "model/text_chunks.h"

#include "model/utf8.h"

namespace troupe::model {
namespace {

// Unicode's White_Space, and the information separators.
bool is_space(char32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

}  // namespace

void for_each_chunk(std::string_view text, size_t max_characters, size_t max_run,
                    const std::function<void(std::string_view chunk)>& chunk) {
  size_t begin = 0;  // of the chunk, in bytes
  size_t characters = 0, run = 0;
  bool in_space = false;
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = first_utf8(text.substr(at));
    const bool space = is_space(unit.code_point);
    const bool too_long = characters == max_characters;
    if (too_long) characters = run = 0;
    if (run > 0 && space != in_space) run = 0;
    if (too_long || run == max_run) {
      chunk(text.substr(begin, at - begin));
      begin = at;
      run = 0;
    }
    in_space = space;
    ++run;
    ++characters;
    at += unit.length;
  }
  if (begin < text.size()) chunk(text.substr(begin));
}

}  // namespace troupe::model
