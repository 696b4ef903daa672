#include "model/json_file.h"

#include <fmt/ranges.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/input_file.h"

namespace troupe::model {

using nlohmann::json;

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 160;
  std::string line(text.substr(0, kLongest));
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  // Not in the middle of a UTF-8 character.
  if (text.size() > kLongest) {
    while (!line.empty() && (static_cast<unsigned char>(line.back()) & 0xc0) == 0x80)
      line.pop_back();
    if (!line.empty() && static_cast<unsigned char>(line.back()) >= 0xc0) line.pop_back();
    line += "...";
  }
  return line;
}

json parse_json(std::string_view text, const std::string& where,
                const json::parser_callback_t& on_event) {
  constexpr int kMaxDepth = 64;
  const auto bounded = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) throw_user_error("{}: nested deeper than {} levels", where, kMaxDepth);
    return on_event == nullptr || on_event(depth, event, value);
  };
  try {
    return json::parse(text.begin(), text.end(), bounded);
  } catch (const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, ...": the library's number says
    // nothing here.
    const std::string_view what = error.what();
    throw_user_error("{}: not valid JSON: {}", where,
                     printable(what.substr(what.starts_with('[') ? what.find(' ') + 1 : 0)));
  }
}

json read_json_file(const std::filesystem::path& path) {
  const InputFile file(path);
  if (file.size() > kMaxJsonFileBytes)
    throw_user_error("{}: {} bytes; a JSON file has at most {}", path.string(), file.size(),
                     kMaxJsonFileBytes);
  json content = parse_json(file.text(), path.string());
  file.require_unchanged();
  return content;
}

JsonObject::JsonObject(const json& value, std::string file, std::string prefix)
    : value_(value), file_(std::move(file)), prefix_(std::move(prefix)) {
  if (!value_.is_object())
    throw_user_error("{}: {} must be an object", file_, prefix_.empty() ? "the file" : prefix_);
}

void JsonObject::fail(std::string_view key, const std::string& what) const {
  throw_user_error("{}: {}{} {}", file_, prefix_, key, what);
}

const json* JsonObject::find(std::string_view key) const {
  const auto found = value_.find(key);
  return found == value_.end() || found->is_null() ? nullptr : &*found;
}

const json& JsonObject::get(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) fail(key, "is missing");
  return *value;
}

int64_t JsonObject::checked_integer(const json& value, std::string_view key,
                                    IntegerBounds bounds) const {
  // Beyond this a double holds no fraction, and no size here is that large.
  constexpr double kExact = 9007199254740992.0;  // 2^53
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(std::abs(number) <= kExact) || number != std::trunc(number))
    fail(key, fmt::format("is {}; it must be an integer from {} to {}", printable(value.dump()),
                          bounds.min, bounds.max));
  const auto integer = static_cast<int64_t>(number);
  if (integer < bounds.min || integer > bounds.max)
    fail(key, fmt::format("is {}; it must be from {} to {}", integer, bounds.min, bounds.max));
  return integer;
}

int64_t JsonObject::integer(std::string_view key, IntegerBounds bounds,
                            std::optional<int64_t> fallback) const {
  if (fallback && !has(key)) return *fallback;
  return checked_integer(get(key), key, bounds);
}

std::vector<int64_t> JsonObject::integers(std::string_view key, IntegerBounds bounds) const {
  std::vector<int64_t> result;
  const json* value = find(key);
  if (value == nullptr) return result;
  if (!value->is_array()) return {checked_integer(*value, key, bounds)};
  for (const json& element : *value) result.push_back(checked_integer(element, key, bounds));
  return result;
}

double JsonObject::number(std::string_view key, NumberBounds bounds,
                          std::optional<double> fallback) const {
  if (fallback && !has(key)) return *fallback;
  const json& value = get(key);
  const double number = value.is_number() ? value.get<double>() : std::nan("");
  if (!(number >= bounds.min && number <= bounds.max))
    fail(key, fmt::format("is {}; it must be a number from {} to {}", printable(value.dump()),
                          bounds.min, bounds.max));
  return number;
}

bool JsonObject::boolean(std::string_view key, bool fallback) const {
  const json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean())
    fail(key, fmt::format("is {}; it must be true or false", printable(value->dump())));
  return value->get<bool>();
}

JsonObject JsonObject::object(std::string_view key) const {
  const json& value = get(key);
  if (!value.is_object())
    fail(key, fmt::format("is {}; it must be an object", printable(value.dump())));
  return JsonObject(value, file_, fmt::format("{}{}.", prefix_, key));
}

std::string JsonObject::string(std::string_view key) const {
  const json& value = get(key);
  if (!value.is_string())
    fail(key, fmt::format("is {}; it must be a string", printable(value.dump())));
  return value.get<std::string>();
}

void JsonObject::fail_choice(std::string_view key, const std::string& found,
                             const std::vector<std::string>& known) const {
  fail(key, fmt::format("'{}' is not supported; supported: {}", printable(found),
                        fmt::join(known, ", ")));
}

}  // namespace troupe::model
