#include "model/utf8.h"

#include <cstdint>

namespace troupe::model {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

Utf8Unit first_utf8(std::string_view bytes) {
  using enum Utf8Unit::Kind;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {kCharacter, 1, lead};
  if (lead < 0xc2 || lead > 0xf4) return {kInvalid, 1, 0};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte alone decides overlong forms, surrogates and the end of Unicode.
  uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  char32_t code_point = lead & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {kIncomplete, i, 0};
    if (byte(i) < low || byte(i) > high) return {kInvalid, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3fu);
    low = 0x80;
    high = 0xbf;
  }
  return {kCharacter, length, code_point};
}

std::optional<size_t> find_invalid_utf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Unit unit = first_utf8(bytes.substr(at));
    if (unit.kind != Utf8Unit::Kind::kCharacter) return at;
    at += unit.length;
  }
  return std::nullopt;
}

std::string take_utf8_lossy(std::string& bytes) {
  std::string text;
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Unit unit = first_utf8(rest);
    if (unit.kind == Utf8Unit::Kind::kIncomplete) break;
    text += unit.kind == Utf8Unit::Kind::kCharacter ? rest.substr(0, unit.length) : kReplacement;
    rest.remove_prefix(unit.length);
  }
  bytes = std::string(rest);
  return text;
}

std::string take_all_utf8_lossy(std::string& bytes) {
  std::string text = take_utf8_lossy(bytes);
  if (!bytes.empty()) text += kReplacement;
  bytes.clear();
  return text;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

}  // namespace troupe::model
