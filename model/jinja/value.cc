#include "model/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "model/utf8.h"

namespace troupe::model::jinja {
namespace {

// Values nest no deeper than JSON does (model/json_file.h), but a namespace can hold itself.
constexpr int kMaxDepth = 100;

void check_depth(int depth) {
  if (depth > kMaxDepth) throw TemplateError("a value is nested too deeply");
}

std::string quoted(const std::string& text) {
  const bool has_single = text.find('\'') != std::string::npos;
  const char quote = has_single && text.find('"') == std::string::npos ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\' || c == quote) {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string repr_of(const Value& value, int depth) {
  check_depth(depth);
  if (const std::string* text = value.string()) return quoted(*text);
  std::vector<std::string> parts;
  if (const List* list = value.list()) {
    for (const Value& element : *list) parts.push_back(repr_of(element, depth + 1));
    return fmt::format("[{}]", fmt::join(parts, ", "));
  }
  if (const Dict* dict = value.dict()) {
    for (const auto& [key, element] : dict->items)
      parts.push_back(quoted(key) + ": " + repr_of(element, depth + 1));
    return fmt::format("{{{}}}", fmt::join(parts, ", "));
  }
  return value.str();
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  std::string write(const Value& value, int depth) {
    check_depth(depth);
    if (value.is_none()) return "null";
    if (value.is_bool()) return value.truth() ? "true" : "false";
    if (value.is_number()) return value.str();
    if (const std::string* text = value.string()) return string(*text);
    if (const List* list = value.list()) {
      std::vector<std::string> parts;
      for (const Value& element : *list) parts.push_back(write(element, depth + 1));
      return bracketed('[', parts, ']', depth);
    }
    if (const Dict* dict = value.dict()) {
      auto items = dict->items;
      if (style_.sort_keys)
        std::ranges::sort(items, {}, [](const auto& item) { return item.first; });
      std::vector<std::string> parts;
      for (const auto& [key, element] : items)
        parts.push_back(string(key) + style_.key_separator + write(element, depth + 1));
      return bracketed('{', parts, '}', depth);
    }
    throw TemplateError(fmt::format("tojson: {} cannot be written as JSON", value.type_name()));
  }

 private:
  static std::string string(const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  std::string bracketed(char open, const std::vector<std::string>& parts, char close,
                        int depth) const {
    std::string out(1, open);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0) out += style_.indent < 0 ? style_.item_separator : ",";
      out += line_break(depth + 1) + parts[i];
    }
    if (!parts.empty()) out += line_break(depth);
    return out + close;
  }

  std::string line_break(int depth) const {
    if (style_.indent < 0) return "";
    std::string out(1 + static_cast<size_t>(style_.indent * depth), ' ');
    out[0] = '\n';
    return out;
  }

  const JsonStyle& style_;
};

bool equal(const Value& a, const Value& b, int depth) {
  check_depth(depth);
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.string() != nullptr && b.string() != nullptr) return *a.string() == *b.string();
  if (a.list() != nullptr && b.list() != nullptr)
    return std::ranges::equal(*a.list(), *b.list(), [depth](const Value& x, const Value& y) {
      return equal(x, y, depth + 1);
    });
  if (const Dict* x = a.dict(), *y = b.dict(); x != nullptr && y != nullptr) {
    if (x->items.size() != y->items.size()) return false;
    return std::ranges::all_of(x->items, [y, depth](const auto& item) {
      const Value* other = y->find(item.first);
      return other != nullptr && equal(item.second, *other, depth + 1);
    });
  }
  if (a.function() != nullptr) return a.function() == b.function();
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

}  // namespace

const Value* Dict::find(const std::string& key) const {
  for (const auto& [name, value] : items)
    if (name == key) return &value;
  return nullptr;
}

void Dict::set(const std::string& key, Value value) {
  for (auto& [name, old] : items) {
    if (name != key) continue;
    old = std::move(value);
    return;
  }
  items.emplace_back(key, std::move(value));
}

const Value* Arguments::find(size_t position, const std::string& name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& [given, value] : named)
    if (given == name) return &value;
  return nullptr;
}

void Arguments::require_at_most(size_t most, const std::string& what) const {
  if (positional.size() + named.size() > most)
    throw TemplateError(fmt::format("{} takes at most {} arguments", what, most));
}

Value Value::of(const nlohmann::ordered_json& json) {
  using Type = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Type::boolean:
      return json.get<bool>();
    case Type::number_integer:
    case Type::number_unsigned:
      return json.get<int64_t>();
    case Type::number_float:
      return json.get<double>();
    case Type::string:
      return json.get<std::string>();
    case Type::array: {
      List list;
      for (const auto& element : json) list.push_back(of(element));
      return list;
    }
    case Type::object: {
      Dict dict;
      for (const auto& [key, element] : json.items()) dict.items.emplace_back(key, of(element));
      return dict;
    }
    default:
      return {};
  }
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return number() != 0;
  if (function() != nullptr) return true;
  return size() > 0;
}

double Value::number() const {
  if (is_bool()) return std::get<bool>(data_) ? 1 : 0;
  if (is_integer()) return static_cast<double>(std::get<int64_t>(data_));
  if (is_float()) return std::get<double>(data_);
  throw TemplateError(fmt::format("{} is no number", type_name()));
}

int64_t Value::integer() const {
  if (is_bool()) return std::get<bool>(data_) ? 1 : 0;
  if (is_integer()) return std::get<int64_t>(data_);
  throw TemplateError(fmt::format("{} is no integer", type_name()));
}

const std::string& Value::text(const char* what) const {
  if (const std::string* found = string()) return *found;
  throw TemplateError(fmt::format("{} must be a string, not {}", what, type_name()));
}

const char* Value::type_name() const {
  constexpr const char* kNames[] = {"undefined", "none",   "a bool", "an integer", "a float",
                                    "a string",  "a list", "a dict", "a function"};
  return kNames[data_.index()];
}

List Value::elements() const {
  if (is_undefined()) return {};
  if (const List* elements = list()) return *elements;
  List out;
  if (const Dict* entries = dict()) {
    for (const auto& item : entries->items) out.emplace_back(item.first);
    return out;
  }
  for (std::string_view rest = text("what is iterated over"); !rest.empty();) {
    const size_t length = first_utf8(rest).length;
    out.emplace_back(std::string(rest.substr(0, length)));
    rest.remove_prefix(length);
  }
  return out;
}

size_t Value::size() const {
  if (list() != nullptr) return list()->size();
  if (dict() != nullptr) return dict()->items.size();
  return elements().size();
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[64];
  const auto scientific =
      std::to_chars(digits, digits + sizeof(digits), value, std::chars_format::scientific);
  const std::string text(digits, scientific.ptr);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;
  const auto fixed =
      std::to_chars(digits, digits + sizeof(digits), value, std::chars_format::fixed);
  const std::string plain(digits, fixed.ptr);
  return plain.find('.') == std::string::npos ? plain + ".0" : plain;
}

std::string Value::str() const {
  if (is_undefined()) return "";
  if (is_none()) return "None";
  if (is_bool()) return truth() ? "True" : "False";
  if (is_integer()) return std::to_string(std::get<int64_t>(data_));
  if (is_float()) return float_repr(std::get<double>(data_));
  if (string() != nullptr) return *string();
  if (function() != nullptr) return "<function>";
  return repr_of(*this, 0);
}

std::string Value::repr() const { return repr_of(*this, 0); }

bool Value::operator==(const Value& other) const { return equal(*this, other, 0); }

bool Value::less(const Value& other) const {
  if (is_number() && other.is_number()) return number() < other.number();
  if (string() != nullptr && other.string() != nullptr) return *string() < *other.string();
  throw TemplateError(fmt::format("{} and {} cannot be ordered", type_name(), other.type_name()));
}

bool Value::contains(const Value& element) const {
  if (is_undefined()) return false;
  if (const std::string* text_here = string())
    return text_here->find(element.text("what is looked for in a string")) != std::string::npos;
  if (const List* elements_here = list())
    return std::ranges::any_of(*elements_here, [&](const Value& e) { return e == element; });
  if (const Dict* entries = dict())
    return element.string() != nullptr && entries->find(*element.string()) != nullptr;
  throw TemplateError(fmt::format("{} contains nothing", type_name()));
}

std::string to_json(const Value& value, const JsonStyle& style) {
  return JsonWriter(style).write(value, 0);
}

}  // namespace troupe::model::jinja
