#include "model/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "model/utf8.h"

namespace troupe::model {

namespace {

constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

// Printable Latin-1 stands for itself; the other bytes, in order, for U+0100 and up.
constexpr int kAlphabetEnd = 0x144;
constexpr auto kByteOfCharacter = [] {
  std::array<int, kAlphabetEnd> bytes{};
  bytes.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) bytes[is_printable(byte) ? byte : next++] = byte;
  return bytes;
}();

constexpr auto kCharacterOfByte = [] {
  std::array<int, 256> characters{};
  for (int c = 0; c < kAlphabetEnd; ++c)
    if (kByteOfCharacter[c] >= 0) characters[kByteOfCharacter[c]] = c;
  return characters;
}();

}  // namespace

std::string alphabet_from_bytes(std::string_view bytes) {
  std::string spelled;
  for (const char byte : bytes) {
    const int character = kCharacterOfByte[static_cast<uint8_t>(byte)];
    if (character < 0x80) {
      spelled += static_cast<char>(character);
    } else {  // two bytes of UTF-8: the alphabet ends below U+0800
      spelled += static_cast<char>(0xc0 | character >> 6);
      spelled += static_cast<char>(0x80 | (character & 0x3f));
    }
  }
  return spelled;
}

std::optional<std::string> bytes_from_alphabet(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    const Utf8Unit unit = first_utf8(token);
    if (unit.code_point >= kAlphabetEnd || kByteOfCharacter[unit.code_point] < 0)
      return std::nullopt;
    bytes += static_cast<char>(kByteOfCharacter[unit.code_point]);
    token.remove_prefix(unit.length);
  }
  return bytes;
}

}  // namespace troupe::model
