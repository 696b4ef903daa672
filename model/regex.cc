#include "model/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#include "base/error.h"
#include "model/utf8.h"

namespace troupe::model {

namespace {

template <auto kFree>
struct FreeWith {
  template <class T>
  void operator()(T* object) const {
    kFree(object);
  }
};
template <class T, auto kFree>
using Owned = std::unique_ptr<T, FreeWith<kFree>>;

std::string pcre2_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

PCRE2_SPTR pcre2_text(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

// Steps of one search. Linear patterns take a few per byte; what goes beyond backtracks without
// end.
uint32_t match_limit(size_t text_bytes) {
  constexpr uint64_t kBase = 10'000'000, kPerByte = 16;
  return static_cast<uint32_t>(std::min<uint64_t>(kBase + kPerByte * text_bytes, UINT32_MAX));
}

}  // namespace

struct Regex::Code {
  Owned<pcre2_code, pcre2_code_free> pattern;
  bool has_jit = false;
};

struct Regex::Scratch::Data {
  Owned<pcre2_match_data, pcre2_match_data_free> match;
  Owned<pcre2_match_context, pcre2_match_context_free> context;
};

Regex::Regex(std::string_view pattern, Syntax syntax) : code_(std::make_unique<Code>()) {
  const uint32_t options = PCRE2_UTF | (syntax == Syntax::kLiteral ? PCRE2_LITERAL : PCRE2_UCP);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->pattern.reset(
      pcre2_compile(pcre2_text(pattern), pattern.size(), options, &error, &offset, nullptr));
  if (code_->pattern == nullptr) throw std::invalid_argument(pcre2_message(error));
  // Without the just-in-time compiler (not built in, no executable memory) matching is slower only.
  code_->has_jit = pcre2_jit_compile(code_->pattern.get(), PCRE2_JIT_COMPLETE) == 0;
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

Regex::Scratch::Scratch(const Regex& regex) : data_(std::make_unique<Data>()) {
  data_->match.reset(pcre2_match_data_create_from_pattern(regex.code_->pattern.get(), nullptr));
  data_->context.reset(pcre2_match_context_create(nullptr));
  if (data_->match == nullptr || data_->context == nullptr) throw std::bad_alloc();
  constexpr uint32_t kHeapKib = 256 << 10;
  pcre2_set_heap_limit(data_->context.get(), kHeapKib);
}

Regex::Scratch::~Scratch() = default;
Regex::Scratch::Scratch(Scratch&&) noexcept = default;

Regex::Matches::Matches(const Regex& regex, Scratch& scratch, std::string_view text)
    : regex_(regex), scratch_(scratch), text_(text) {
  pcre2_set_match_limit(scratch_.data_->context.get(), match_limit(text.size()));
}

std::optional<Regex::Match> Regex::Matches::search() {
  Scratch::Data& data = *scratch_.data_;
  const auto match = [&](uint32_t options) {
    return pcre2_match(regex_.code_->pattern.get(), pcre2_text(text_), text_.size(), at_,
                       PCRE2_NO_UTF_CHECK | options, data.match.get(), data.context.get());
  };
  int result;
  if (regex_.code_->has_jit) {  // called directly: pcre2_match() spends as long again on its checks
    result = pcre2_jit_match(regex_.code_->pattern.get(), pcre2_text(text_), text_.size(), at_, 0,
                             data.match.get(), data.context.get());
    // It has a small stack of its own; the interpreter uses the heap.
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  } else {
    result = match(0);
  }
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result < 0)
    throw_user_error("a split pattern of tokenizer.json fails on this text of {} bytes: {}",
                     text_.size(), pcre2_message(result));
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data.match.get());
  return Match{offsets[0], offsets[1]};
}

std::optional<Regex::Match> Regex::Matches::next() {
  while (at_ <= text_.size()) {
    const std::optional<Match> match = search();
    if (!match) return std::nullopt;
    if (match->begin != match->end || match->end != last_end_) {
      at_ = match->end;
      last_end_ = match->end;
      return match;
    }
    at_ += at_ < text_.size() ? first_utf8(text_.substr(at_)).length : 1;
  }
  return std::nullopt;
}

bool Regex::matches(Scratch& scratch, std::string_view text) const {
  return Matches(*this, scratch, text).next().has_value();
}

}  // namespace troupe::model
