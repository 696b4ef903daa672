// Jinja2's filters, those that chat templates use.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "model/jinja/syntax.h"

namespace troupe::model::jinja {
namespace {

bool flag(const Arguments& arguments, size_t position, const char* name, bool fallback) {
  const Value* given = arguments.find(position, name);
  return given == nullptr ? fallback : given->truth();
}

Value tojson(const Value& value, const Arguments& arguments) {
  JsonStyle style;
  if (const Value* indent = arguments.find(0, "indent"); indent != nullptr && !indent->is_none())
    style.indent = static_cast<int>(std::clamp<int64_t>(indent->integer(), 0, 16));
  if (const Value* separators = arguments.find(2, "separators");
      separators != nullptr && !separators->is_none()) {
    const List both = separators->elements();
    if (both.size() != 2) throw TemplateError("tojson: separators are two strings");
    style.item_separator = both[0].text("a separator");
    style.key_separator = both[1].text("a separator");
  }
  style.sort_keys = flag(arguments, 3, "sort_keys", false);
  return to_json(value, style);
}

// A method of strings as a filter of the same name.
template <const char* kName>
Value method(const Value& value, const Arguments& arguments) {
  return (*find_method(value.str(), kName).function())(arguments);
}
constexpr char kStrip[] = "strip", kUpper[] = "upper", kLower[] = "lower", kReplace[] = "replace",
               kTitle[] = "title", kCapitalize[] = "capitalize";

Value length(const Value& value, const Arguments&) { return static_cast<int64_t>(value.size()); }

Value string(const Value& value, const Arguments&) { return value.str(); }

Value list(const Value& value, const Arguments&) { return value.elements(); }

Value same(const Value& value, const Arguments&) { return value; }

Value fallback(const Value& value, const Arguments& arguments) {
  const bool replaces_false = flag(arguments, 1, "boolean", false);
  if (!value.is_undefined() && (value.truth() || !replaces_false)) return value;
  const Value* given = arguments.find(0, "default_value");
  return given == nullptr ? Value("") : *given;
}

Value attribute_of(const Value& value, const std::string& path) {
  Value found = value;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const Value* next =
        found.dict() == nullptr ? nullptr : found.dict()->find(path.substr(begin, end - begin));
    if (next == nullptr) return Undefined{path};
    found = Value(*next);
    begin = end + 1;
  }
  return found;
}

Value join(const Value& value, const Arguments& arguments) {
  const Value* separator = arguments.find(0, "d");
  const Value* attribute = arguments.find(1, "attribute");
  std::string out;
  bool first = true;
  for (const Value& element : value.elements()) {
    if (!first && separator != nullptr) out += separator->str();
    first = false;
    out += (attribute == nullptr ? element : attribute_of(element, attribute->text("attribute")))
               .str();
  }
  return out;
}

Value first(const Value& value, const Arguments&) {
  const List elements = value.elements();
  return elements.empty() ? Value(Undefined{"first"}) : elements.front();
}

Value last(const Value& value, const Arguments&) {
  const List elements = value.elements();
  return elements.empty() ? Value(Undefined{"last"}) : elements.back();
}

Value reverse(const Value& value, const Arguments&) {
  List elements = value.elements();
  std::ranges::reverse(elements);
  if (value.string() == nullptr) return elements;
  std::string out;
  for (const Value& character : elements) out += *character.string();
  return out;
}

Value unique(const Value& value, const Arguments&) {
  List out;
  for (const Value& element : value.elements())
    if (!Value(out).contains(element)) out.push_back(element);
  return out;
}

Value sort(const Value& value, const Arguments& arguments) {
  List elements = value.elements();
  const Value* attribute = arguments.find(2, "attribute");
  const auto key = [&](const Value& element) {
    return attribute == nullptr ? element : attribute_of(element, attribute->text("attribute"));
  };
  std::ranges::stable_sort(
      elements, [](const Value& a, const Value& b) { return a.less(b); }, key);
  if (flag(arguments, 0, "reverse", false)) std::ranges::reverse(elements);
  return elements;
}

Value items(const Value& value, const Arguments&) {
  if (value.is_undefined()) return List{};
  if (value.dict() == nullptr) throw TemplateError("items: not a dict");
  return (*find_method(value, "items").function())({});
}

Value dictsort(const Value& value, const Arguments&) {
  if (value.dict() == nullptr) throw TemplateError("dictsort: not a dict");
  Dict sorted = *value.dict();
  std::ranges::stable_sort(sorted.items, {}, [](const auto& item) { return item.first; });
  return items(std::move(sorted), {});
}

Value integer(const Value& value, const Arguments& arguments) {
  const Value* given = arguments.find(0, "default");
  const Value otherwise = given == nullptr ? Value(int64_t{0}) : *given;
  if (value.is_float()) return static_cast<int64_t>(std::clamp(value.number(), -9e18, 9e18));
  if (value.is_number()) return value.integer();
  if (value.string() == nullptr) return otherwise;
  try {
    size_t used = 0;
    const int64_t number = std::stoll(*value.string(), &used);
    return used == value.string()->size() ? Value(number) : otherwise;
  } catch (const std::exception&) {
    return otherwise;
  }
}

Value absolute(const Value& value, const Arguments&) {
  return value.is_float() ? Value(std::fabs(value.number())) : Value(std::abs(value.integer()));
}

Arguments rest_of(const Arguments& arguments, size_t first_positional) {
  Arguments rest;
  for (size_t i = first_positional; i < arguments.positional.size(); ++i)
    rest.positional.push_back(arguments.positional[i]);
  return rest;
}

// map(attribute="x") or map("filter", ...).
Value map(const Value& value, const Arguments& arguments) {
  List out;
  if (const Value* attribute = arguments.find(SIZE_MAX, "attribute")) {
    const Value* otherwise = arguments.find(SIZE_MAX, "default");
    for (const Value& element : value.elements()) {
      Value found = attribute_of(element, attribute->text("attribute"));
      out.push_back(found.is_undefined() && otherwise != nullptr ? *otherwise : std::move(found));
    }
    return out;
  }
  const Value* name = arguments.find(0, "filter");
  const Filter filter = name == nullptr ? nullptr : find_filter(name->text("map"));
  if (filter == nullptr) throw TemplateError("map: needs an attribute or a known filter");
  for (const Value& element : value.elements())
    out.push_back(filter(element, rest_of(arguments, 1)));
  return out;
}

// select, reject, selectattr, rejectattr: the elements that pass, or fail, a test; without one,
// those that are true.
template <bool kByAttribute, bool kPasses>
Value choose(const Value& value, const Arguments& arguments) {
  constexpr size_t kTest = kByAttribute ? 1 : 0;
  const Value* attribute = kByAttribute ? arguments.find(0, "attribute") : nullptr;
  if (kByAttribute && attribute == nullptr) throw TemplateError("selectattr: needs an attribute");
  const Value* name = arguments.find(kTest, "test");
  const Test test = name == nullptr ? nullptr : find_test(name->text("a test"));
  if (name != nullptr && test == nullptr)
    throw TemplateError(fmt::format("the test '{}' is not supported", name->str()));
  List out;
  for (const Value& element : value.elements()) {
    const Value tested =
        attribute == nullptr ? element : attribute_of(element, attribute->text("attribute"));
    const bool passes =
        test == nullptr ? tested.truth() : test(tested, rest_of(arguments, kTest + 1));
    if (passes == kPasses) out.push_back(element);
  }
  return out;
}

}  // namespace

Filter find_filter(const std::string& name) {
  static constexpr std::pair<const char*, Filter> kFilters[] = {
      {"tojson", tojson},
      {"trim", method<kStrip>},
      {"upper", method<kUpper>},
      {"lower", method<kLower>},
      {"title", method<kTitle>},
      {"capitalize", method<kCapitalize>},
      {"replace", method<kReplace>},
      {"length", length},
      {"count", length},
      {"string", string},
      {"list", list},
      {"safe", same},
      {"default", fallback},
      {"d", fallback},
      {"join", join},
      {"first", first},
      {"last", last},
      {"reverse", reverse},
      {"unique", unique},
      {"sort", sort},
      {"items", items},
      {"dictsort", dictsort},
      {"int", integer},
      {"abs", absolute},
      {"map", map},
      {"select", choose<false, true>},
      {"reject", choose<false, false>},
      {"selectattr", choose<true, true>},
      {"rejectattr", choose<true, false>}};
  for (const auto& [known, filter] : kFilters)
    if (name == known) return filter;
  return nullptr;
}

}  // namespace troupe::model::jinja
