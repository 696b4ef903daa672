#include "model/split_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>

#include "model/unicode_additions.h"
#include "model/utf8.h"

namespace troupe::model {

namespace {

// General categories whose members are letters, marks and so on in every version of Unicode. The C
// group is left out: it shrinks as characters are assigned.
constexpr std::array<std::string_view, 31> kCategories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
    "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};

constexpr std::string_view kWhiteSpace = R"(\x{9}-\x{d}\x{85}\p{Z})";

// Script=Han, and what Unicode 15 added to it (extensions H and I). A plain \p{Han} of PCRE2 is the
// script's extensions, which reach into punctuation.
constexpr std::string_view kHan = R"(\p{sc:Han}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";

std::string character_item(char32_t code_point) {
  return fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(code_point));
}

// The members of \p{category} as items of a class.
std::string category_items(std::string_view category) {
  // First what most texts hold: PCRE2 goes through the items in their order.
  std::string items = fmt::format("\\p{{{}}}", category);
  for (const UnicodeAddition& addition : kUnicodeAdditions) {
    if (!std::string_view(addition.category).starts_with(category)) continue;
    items += character_item(addition.first) + '-' + character_item(addition.last);
  }
  return items;
}

std::string ascii_lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}
  std::string run();

 private:
  // One character, or a set of them as items of a class.
  struct Item {
    std::optional<char32_t> character = {};
    std::string set = {};
    bool negated = false;
  };

  bool starts_with(std::string_view text) const { return rest().starts_with(text); }
  std::string_view rest() const { return pattern_.substr(at_); }
  bool take(std::string_view text);
  char32_t take_character();
  std::string_view take_until(char end);
  [[noreturn]] void refuse(std::string_view what) const;

  void open_group();
  void quantifier();
  void counted_quantifier();
  void character_class();
  std::string class_items();
  Item class_item();
  Item escape();
  Item property(bool negated);
  char32_t hexadecimal(std::string_view digits) const;
  void emit(const Item& item);

  std::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
};

void Translator::refuse(std::string_view what) const {
  throw std::invalid_argument(fmt::format("byte {}: {}", at_, what));
}

bool Translator::take(std::string_view text) {
  if (!starts_with(text)) return false;
  at_ += text.size();
  return true;
}

char32_t Translator::take_character() {
  if (rest().empty()) refuse("the pattern ends too early");
  const Utf8Unit unit = first_utf8(rest());
  if (unit.kind != Utf8Unit::Kind::kCharacter) refuse("is not UTF-8");
  at_ += unit.length;
  return unit.code_point;
}

std::string_view Translator::take_until(char end) {
  const size_t length = rest().find(end);
  if (length == std::string_view::npos) refuse(fmt::format("'{}' is missing", end));
  const std::string_view taken = rest().substr(0, length);
  at_ += length + 1;
  return taken;
}

std::string Translator::run() {
  bool repeatable = false;
  while (at_ < pattern_.size()) {
    const char c = pattern_[at_];
    if (c == '*' || c == '+' || c == '?' || c == '{') {
      if (!repeatable) refuse("nothing to repeat that is supported here");
      quantifier();
      repeatable = false;
      continue;
    }
    repeatable = c != '|' && c != '(';
    if (c == '(') {
      open_group();
    } else if (c == '[') {
      character_class();
    } else if (take("\\")) {
      emit(escape());
    } else if (c == '^') {
      refuse("^ outside a class is not supported");
    } else if (take("$")) {
      out_ += "(?:(?=\\n)|\\z)";  // Ruby's $ is the end of any line
    } else if (c == '.' || c == '|' || c == ')') {
      out_ += c;
      ++at_;
    } else {
      emit(Item{.character = take_character()});
    }
  }
  return out_;
}

void Translator::emit(const Item& item) {
  out_ += item.character ? character_item(*item.character)
                         : fmt::format("[{}{}]", item.negated ? "^" : "", item.set);
}

void Translator::open_group() {
  if (take("(?i:")) {
    // Contractions such as (?i:'s|'ll). In Oniguruma some pairs of letters also match a ligature.
    const std::string_view body = rest().substr(0, rest().find(')'));
    for (const std::string_view pair : {"ss", "ff", "fi", "fl", "st"})
      if (ascii_lower(body).find(pair) != std::string::npos)
        refuse("(?i: with letters that have a ligature is not supported");
    if (ascii_lower(body).find_first_not_of("abcdefghijklmnopqrstuvwxyz'|") != std::string::npos)
      refuse("(?i: is supported with ASCII letters, ' and | only");
    out_ += fmt::format("(?i:{}", body);
    at_ += body.size();
    return;
  }
  for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
    if (!take(opening)) continue;
    out_ += opening;
    return;
  }
  if (starts_with("(?")) refuse("this kind of group is not supported");
  take("(");
  out_ += '(';
}

void Translator::quantifier() {
  if (starts_with("{")) {
    counted_quantifier();
  } else {
    out_ += pattern_[at_++];
    if (starts_with("?") || starts_with("+")) out_ += pattern_[at_++];
  }
  for (const std::string_view more : {"*", "+", "?", "{"})
    if (starts_with(more)) refuse("a repetition of a repetition is not supported");
}

void Translator::counted_quantifier() {
  take("{");
  const std::string_view counts = take_until('}');
  const size_t comma = counts.find(',');
  const auto number = [](std::string_view digits) {
    return digits.find_first_not_of("0123456789") == std::string_view::npos;
  };
  const std::string_view low = counts.substr(0, comma);
  const std::string_view high = comma == counts.npos ? "" : counts.substr(comma + 1);
  if (low.empty() || !number(low) || !number(high)) refuse("'{' must start {n}, {n,} or {n,m}");
  out_ += fmt::format("{{{}}}", counts);
}

void Translator::character_class() {
  take("[");
  const bool negated = take("^");
  std::string items = class_items();
  if (take("]")) {
    out_ += fmt::format("[{}{}]", negated ? "^" : "", items);
    return;
  }
  // PCRE2 has no intersection: a look ahead keeps out what is not wanted.
  if (negated || !take("&&[^")) refuse("of &&, [...&&[^...]] is supported only");
  out_ += fmt::format("(?:(?![{}])[{}])", class_items(), items);
  if (!take("]]")) refuse("of &&, [...&&[^...]] is supported only");
}

// What stands between the brackets of a class, up to "]" or "&&".
std::string Translator::class_items() {
  std::string out;
  if (starts_with("]")) refuse("']' as the first of a class is not supported");
  while (!starts_with("&&") && !starts_with("]")) {
    const Item first = class_item();
    out += first.character ? character_item(*first.character) : first.set;
    if (!first.character || !starts_with("-") || starts_with("-]")) continue;
    take("-");
    const Item last = class_item();
    if (!last.character) refuse("a range must end with a character");
    out += '-' + character_item(*last.character);
  }
  return out;
}

Translator::Item Translator::class_item() {
  if (starts_with("[")) refuse("a class inside a class is not supported");
  if (take("\\w"))
    return {.set = category_items("L") + category_items("M") + category_items("Nd") +
                   category_items("Pc") + "\\p{Alphabetic}"};
  if (!take("\\")) return {.character = take_character()};
  Item item = escape();
  if (item.negated) refuse("a negated escape in a class is not supported");
  return item;
}

// What follows a backslash.
Translator::Item Translator::escape() {
  if (take("s")) return {.set = std::string(kWhiteSpace)};
  if (take("S")) return {.set = std::string(kWhiteSpace), .negated = true};
  if (take("d")) return {.set = category_items("Nd")};
  if (take("D")) return {.set = category_items("Nd"), .negated = true};
  if (take("p{")) return property(false);
  if (take("P{")) return property(true);
  if (take("x{")) return {.character = hexadecimal(take_until('}'))};
  for (const auto& [prefix, digits] : {std::pair{"x", 2}, std::pair{"u", 4}}) {
    if (!take(prefix)) continue;
    if (rest().size() < static_cast<size_t>(digits)) refuse("hexadecimal digits are missing");
    const char32_t character = hexadecimal(rest().substr(0, digits));
    // In Oniguruma \x80 is a byte, not a character.
    if (digits == 2 && character > 0x7f) refuse("\\x is supported up to \\x7F");
    at_ += digits;
    return {.character = character};
  }
  constexpr std::string_view kNames = "tnvfrae", kCharacters = "\t\n\v\f\r\a\x1b";
  const char32_t c = take_character();
  if (c < 0x80) {
    const size_t name = kNames.find(static_cast<char>(c));
    if (name != kNames.npos) return {.character = kCharacters[name]};
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
      refuse(fmt::format("\\{} is not supported", static_cast<char>(c)));
  }
  return {.character = c};
}

Translator::Item Translator::property(bool negated) {
  const std::string_view name = take_until('}');
  if (name == "Han") return {.set = std::string(kHan), .negated = negated};
  if (std::find(kCategories.begin(), kCategories.end(), name) == kCategories.end())
    refuse("of the properties, Han and general categories such as \\p{L} or \\p{Lu} are supported");
  return {.set = category_items(name), .negated = negated};
}

char32_t Translator::hexadecimal(std::string_view digits) const {
  if (digits.empty() || digits.size() > 6 ||
      digits.find_first_not_of("0123456789abcdefABCDEF") != digits.npos)
    refuse("hexadecimal digits are missing");
  const auto value = static_cast<char32_t>(std::stoul(std::string(digits), nullptr, 16));
  if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) refuse("no such character");
  return value;
}

}  // namespace

std::string split_pattern_to_pcre2(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace troupe::model
