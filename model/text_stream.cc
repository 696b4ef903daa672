#include "model/text_stream.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace troupe::model {

TextStream::TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stops)
    : decoder_(tokenizer) {
  for (const std::string& stop : stops) {
    TROUPE_CHECK(!stop.empty());
    std::vector<size_t> border(stop.size(), 0);
    for (size_t i = 1, length = 0; i < stop.size(); ++i) {
      while (length > 0 && stop[i] != stop[length]) length = border[length - 1];
      length += stop[i] == stop[length];
      border[i] = length;
    }
    matchers_.push_back({stop, std::move(border)});
  }
}

bool TextStream::complete_after(Matcher& m, char byte) {
  while (m.matched > 0 && m.stop[m.matched] != byte) m.matched = m.border[m.matched - 1];
  m.matched += m.stop[m.matched] == byte;
  return m.matched == m.stop.size();
}

std::string TextStream::show(const std::string& text) {
  if (stopped_) return {};
  for (const char byte : text) {
    held_ += byte;
    size_t longest = 0;
    for (Matcher& m : matchers_)
      if (complete_after(m, byte)) longest = std::max(longest, m.stop.size());
    if (longest == 0) continue;
    stopped_ = true;
    held_.resize(held_.size() - longest);
    return std::exchange(held_, {});
  }
  size_t hold = 0;
  for (const Matcher& m : matchers_) hold = std::max(hold, m.matched);
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string TextStream::push(int32_t id) { return show(decoder_.push(id)); }

std::string TextStream::finish() {
  const std::string shown = show(decoder_.finish());
  return shown + std::exchange(held_, {});
}

}  // namespace troupe::model
