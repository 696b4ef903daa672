#include "model/added_tokens.h"

#include <algorithm>

#include "base/error.h"
#include "model/split_pattern.h"
#include "model/utf8.h"

namespace troupe::model {

namespace {

uint64_t edge(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<uint8_t>(byte); }

// The last character of non-empty valid UTF-8.
std::string_view last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while ((static_cast<uint8_t>(text[at]) & 0xc0) == 0x80) --at;
  return text.substr(at);
}

size_t leading_space(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const Utf8Unit unit = first_utf8(text.substr(bytes));
    if (!is_white_space(unit.code_point)) break;
    bytes += unit.length;
  }
  return bytes;
}

size_t trailing_space(std::string_view text) {
  size_t bytes = 0;
  while (bytes < text.size()) {
    const std::string_view last = last_character(text.substr(0, text.size() - bytes));
    if (!is_white_space(first_utf8(last).code_point)) break;
    bytes += last.size();
  }
  return bytes;
}

}  // namespace

// The word characters of Rust's regex crate: those of Oniguruma's \w and the two joiners.
AddedTokenSplitter::AddedTokenSplitter(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)),
      word_(split_pattern_to_pcre2(R"([\w\x{200c}\x{200d}])"), Regex::Syntax::kPcre2) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    TROUPE_CHECK(!content.empty() && content.size() <= kMaxContentBytes);
    uint32_t node = 0;
    for (const char byte : content)
      node = edges_.try_emplace(edge(node, byte), static_cast<uint32_t>(edges_.size() + 1))
                 .first->second;
    ends_[node] = i;
  }
}

const AddedToken* AddedTokenSplitter::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto next = edges_.find(edge(node, byte));
    if (next == edges_.end()) break;
    node = next->second;
    const auto end = ends_.find(node);
    if (end != ends_.end()) longest = &tokens_[end->second];
  }
  return longest;
}

bool AddedTokenSplitter::stands_alone(std::string_view before, std::string_view after) const {
  Regex::Scratch scratch(word_);
  if (!before.empty() && word_.matches(scratch, last_character(before))) return false;
  return after.empty() || !word_.matches(scratch, after.substr(0, first_utf8(after).length));
}

void AddedTokenSplitter::split(std::string_view text, std::vector<Segment>& segments) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;  // whatever becomes of this match, the next one starts after it
    if (token->single_word && !stands_alone(text.substr(0, begin), text.substr(end))) continue;
    // What an earlier token took along is not looked at again: spaces are walked over once.
    if (token->lstrip && done < begin) begin -= trailing_space(text.substr(done, begin - done));
    if (token->rstrip) end = std::max(end, done);
    if (token->rstrip) end += leading_space(text.substr(end));
    if (done < begin) segments.push_back({text.substr(done, begin - done)});
    segments.push_back({text.substr(begin, end - begin), token->id});
    done = end;
  }
  if (done < text.size()) segments.push_back({text.substr(done)});
}

}  // namespace troupe::model
