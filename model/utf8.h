// model/utf8.h: UTF-8 read character by character, as Rust's String reads it.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace troupe::model {

// What stands at the front of some bytes, by table 3-7 of the Unicode standard: overlong forms,
// surrogates and code points past U+10FFFF are invalid.
struct Utf8Unit {
  enum class Kind {
    kCharacter,
    kInvalid,     // no further byte can mend it; one U+FFFD stands for these `length` bytes
    kIncomplete,  // the bytes end inside a character that could still become valid
  };
  Kind kind;
  size_t length;        // in bytes
  char32_t code_point;  // of a kCharacter
};

Utf8Unit first_utf8(std::string_view bytes);  // `bytes` is not empty

// The offset of the first byte that is no UTF-8, if there is one.
std::optional<size_t> find_invalid_utf8(std::string_view bytes);

// Takes all that is decided off the front of `bytes`, U+FFFD in place of what is invalid, and
// leaves an incomplete character there.
std::string take_utf8_lossy(std::string& bytes);
// Takes everything: what is incomplete becomes one U+FFFD. Equal to Rust's String::from_utf8_lossy.
std::string take_all_utf8_lossy(std::string& bytes);

bool is_white_space(char32_t code_point);  // Unicode property White_Space

}  // namespace troupe::model
