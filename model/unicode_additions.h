// model/unicode_additions.h: characters that Unicode gained after version 14.
//
// Debian 12's PCRE2 (10.42) knows Unicode 14, the regular expressions of Hugging Face tokenizers
// know 16: without these "\p{L}" would split texts with newer letters and emoji differently.
#pragma once

#include <cstdint>
#include <span>

namespace troupe::model {

struct UnicodeAddition {
  uint32_t first, last;
  char category[3];  // "Lu", "So", ...
};

// In order of code points, disjoint. Made by tools/tokenizer_vectors/make_unicode_additions.mjs.
extern const std::span<const UnicodeAddition> kUnicodeAdditions;

}  // namespace troupe::model
