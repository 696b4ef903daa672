// The methods of Python's str and dict that chat templates call. Those that change a list or a dict
// are left out, as in the sandbox that the transformers library renders in.
#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "model/jinja/syntax.h"
#include "model/utf8.h"

namespace troupe::model::jinja {
namespace {

using Arg = const Arguments&;

// The length of the first, or the last, character of `text` if strip() takes it away: one of
// `characters`, or white space when those are null.
size_t stripped_length(std::string_view text, bool front, const std::string* characters) {
  size_t begin = front ? 0 : text.size() - 1;
  while (!front && begin > 0 && (text[begin] & 0xc0) == 0x80) --begin;
  const Utf8Unit unit = first_utf8(text.substr(begin));
  if (unit.kind != Utf8Unit::Kind::kCharacter) return 0;
  const std::string_view character = text.substr(begin, unit.length);
  const bool taken = characters != nullptr ? characters->find(character) != std::string::npos
                                           : is_white_space(unit.code_point);
  return taken ? unit.length : 0;
}

template <bool kFront, bool kBack>
Value strip(const std::string& text, Arg arguments) {
  const Value* given = arguments.find(0, "chars");
  const std::string* characters =
      given == nullptr || given->is_none() ? nullptr : &given->text("what is stripped");
  std::string_view rest = text;
  while (kFront && !rest.empty()) {
    const size_t length = stripped_length(rest, true, characters);
    if (length == 0) break;
    rest.remove_prefix(length);
  }
  while (kBack && !rest.empty()) {
    const size_t length = stripped_length(rest, false, characters);
    if (length == 0) break;
    rest.remove_suffix(length);
  }
  return std::string(rest);
}

List split_at_blanks(const std::string& text, int64_t most) {
  List out;
  size_t at = 0;
  const auto skip = [&](bool blanks) {
    while (at < text.size()) {
      const Utf8Unit unit = first_utf8(std::string_view(text).substr(at));
      const bool blank = unit.kind == Utf8Unit::Kind::kCharacter && is_white_space(unit.code_point);
      if (blank != blanks) return;
      at += unit.length;
    }
  };
  for (skip(true); at < text.size(); skip(true)) {
    const size_t begin = at;
    if (most >= 0 && static_cast<int64_t>(out.size()) == most) {
      out.push_back(strip<false, true>(text.substr(begin), {}));
      break;
    }
    skip(false);
    out.emplace_back(text.substr(begin, at - begin));
  }
  return out;
}

Value split(const std::string& text, Arg arguments) {
  const Value* separator = arguments.find(0, "sep");
  const Value* given = arguments.find(1, "maxsplit");
  const int64_t most = given == nullptr ? -1 : given->integer();
  if (separator == nullptr || separator->is_none()) return split_at_blanks(text, most);
  const std::string& by = separator->text("a separator");
  if (by.empty()) throw TemplateError("split: the separator is empty");
  List out;
  size_t begin = 0;
  for (size_t end; (end = text.find(by, begin)) != std::string::npos; begin = end + by.size()) {
    if (most >= 0 && static_cast<int64_t>(out.size()) == most) break;
    out.emplace_back(text.substr(begin, end - begin));
  }
  out.emplace_back(text.substr(begin));
  return out;
}

Value replace(const std::string& text, Arg arguments) {
  const Value* old = arguments.find(0, "old");
  const Value* with = arguments.find(1, "new");
  if (old == nullptr || with == nullptr) throw TemplateError("replace: needs two strings");
  const std::string& from = old->text("what is replaced");
  if (from.empty()) throw TemplateError("replace: what is replaced is empty");
  int64_t left = INT64_MAX;
  if (const Value* count = arguments.find(2, "count"); count != nullptr && count->integer() >= 0)
    left = count->integer();
  std::string out;
  size_t begin = 0;
  for (size_t end; left-- > 0 && (end = text.find(from, begin)) != std::string::npos;
       begin = end + from.size())
    out += text.substr(begin, end - begin) + with->text("the replacement");
  return out + text.substr(begin);
}

// Only ASCII letters have their case changed: the others are left as they are.
char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

template <char (*kChange)(char)>
Value changed_case(const std::string& text, Arg) {
  std::string out = text;
  std::ranges::transform(out, out.begin(), kChange);
  return out;
}

// The first letter of the text, or with kEveryWord of each word, as a capital, the rest small.
template <bool kEveryWord>
Value capitalized(const std::string& text, Arg) {
  std::string out;
  bool begins = true;
  for (const char c : text) {
    out += begins ? upper(c) : lower(c);
    const bool letter = upper(c) != lower(c) || static_cast<unsigned char>(c) >= 0x80;
    begins = kEveryWord && !letter;
  }
  return out;
}

// Of one string or any of a list.
template <class Has>
Value any_of(Arg arguments, const Has& has) {
  const Value* given = arguments.find(0, "prefix");
  if (given == nullptr) throw TemplateError("startswith and endswith need a string");
  if (const List* list = given->list())
    return std::ranges::any_of(*list, [&](const Value& v) { return has(v.text("a prefix")); });
  return Value(has(given->text("a prefix")));
}

Value starts_with(const std::string& text, Arg arguments) {
  return any_of(arguments, [&](const std::string& part) { return text.starts_with(part); });
}

Value ends_with(const std::string& text, Arg arguments) {
  return any_of(arguments, [&](const std::string& part) { return text.ends_with(part); });
}

Value join(const std::string& text, Arg arguments) {
  const Value* list = arguments.find(0, "iterable");
  if (list == nullptr) throw TemplateError("join: needs a list");
  std::string out;
  bool first = true;
  for (const Value& element : list->elements()) {
    if (!first) out += text;
    first = false;
    out += element.text("what is joined");
  }
  return out;
}

using StringMethod = Value (*)(const std::string&, Arg);
constexpr std::pair<const char*, StringMethod> kStringMethods[] = {
    {"strip", strip<true, true>},   {"lstrip", strip<true, false>},
    {"rstrip", strip<false, true>}, {"split", split},
    {"replace", replace},           {"upper", changed_case<upper>},
    {"lower", changed_case<lower>}, {"capitalize", capitalized<false>},
    {"title", capitalized<true>},   {"startswith", starts_with},
    {"endswith", ends_with},        {"join", join},
};

Value get(const Dict& dict, Arg arguments) {
  const Value* key = arguments.find(0, "key");
  if (key == nullptr) throw TemplateError("get: needs a key");
  const Value* found = key->string() == nullptr ? nullptr : dict.find(*key->string());
  if (found != nullptr) return *found;
  const Value* otherwise = arguments.find(1, "default");
  return otherwise == nullptr ? Value() : *otherwise;
}

Value items(const Dict& dict, Arg) {
  List out;
  for (const auto& [key, value] : dict.items) out.emplace_back(List{key, value});
  return out;
}

Value keys(const Dict& dict, Arg) {
  List out;
  for (const auto& item : dict.items) out.emplace_back(item.first);
  return out;
}

Value values(const Dict& dict, Arg) {
  List out;
  for (const auto& item : dict.items) out.push_back(item.second);
  return out;
}

using DictMethod = Value (*)(const Dict&, Arg);
constexpr std::pair<const char*, DictMethod> kDictMethods[] = {
    {"get", get}, {"items", items}, {"keys", keys}, {"values", values}};

}  // namespace

Value find_method(const Value& value, const std::string& name) {
  if (value.string() != nullptr)
    for (const auto& [known, method] : kStringMethods)
      if (name == known)
        return Function([value, method = method](Arg a) { return method(*value.string(), a); });
  if (value.dict() != nullptr)
    for (const auto& [known, method] : kDictMethods)
      if (name == known)
        return Function([value, method = method](Arg a) { return method(*value.dict(), a); });
  return Undefined{name};
}

}  // namespace troupe::model::jinja
