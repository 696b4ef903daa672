// model/byte_alphabet.h: GPT-2's spelling of bytes, in which byte-level tokenizer.json files are
// written: each byte is one printable character, a space for instance U+0120.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace troupe::model {

// The bytes that `token` (valid UTF-8) spells; nothing when a character is not of the alphabet.
std::optional<std::string> bytes_from_alphabet(std::string_view token);

// `bytes` spelled in the alphabet.
std::string alphabet_from_bytes(std::string_view bytes);

}  // namespace troupe::model
