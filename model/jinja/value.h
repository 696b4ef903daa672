// model/jinja/value.h: the values of a template: Python's, as far as templates use them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace troupe::model::jinja {

// A template that is wrong, or refuses its input.
class TemplateError : public std::runtime_error {
 public:
  explicit TemplateError(const std::string& what) : std::runtime_error(what) {}
  TemplateError(int line, const std::string& what)
      : std::runtime_error("line " + std::to_string(line) + ": " + what), has_line_(true) {}
  bool has_line() const { return has_line_; }

 private:
  bool has_line_ = false;
};

class Value;
using List = std::vector<Value>;

// Keeps the order of insertion, as Python does.
struct Dict {
  std::vector<std::pair<std::string, Value>> items;
  bool is_namespace = false;  // made by namespace(): its names can be set, and hide no method

  const Value* find(const std::string& key) const;
  void set(const std::string& key, Value value);
};

struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `position` or called `name`; nullptr if it is not given.
  const Value* find(size_t position, const std::string& name) const;
  // TemplateError with `what` unless there are at most `most` arguments, all positional ones among
  // the first.
  void require_at_most(size_t most, const std::string& what) const;
};
using Function = std::function<Value(const Arguments&)>;

struct Undefined {
  std::string name;  // what was looked for
};
struct None {};

class Value {
 public:
  Value() : data_(None{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::move(value)) {}
  Value(const char* value) : data_(std::string(value)) {}
  Value(List list) : data_(std::make_shared<const List>(std::move(list))) {}
  Value(Dict dict) : data_(std::make_shared<Dict>(std::move(dict))) {}
  Value(std::shared_ptr<Dict> dict) : data_(std::move(dict)) {}
  Value(Function function) : data_(std::make_shared<const Function>(std::move(function))) {}
  static Value of(const nlohmann::ordered_json& json);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_integer() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_integer() || is_float(); }  // as in Python
  const std::string* string() const { return std::get_if<std::string>(&data_); }
  const List* list() const { return pointee<std::shared_ptr<const List>>(); }
  Dict* dict() const { return pointee<std::shared_ptr<Dict>>(); }
  const Function* function() const { return pointee<std::shared_ptr<const Function>>(); }

  bool truth() const;
  double number() const;                            // TemplateError unless is_number()
  int64_t integer() const;                          // TemplateError unless a bool or an integer
  const std::string& text(const char* what) const;  // TemplateError naming `what` unless a string
  const char* type_name() const;
  // The elements of a list, the keys of a dict, the characters of a string, none of an undefined.
  List elements() const;
  size_t size() const;

  std::string str() const;   // as Python's str()
  std::string repr() const;  // as Python's repr()
  bool operator==(const Value& other) const;
  bool less(const Value& other) const;        // TemplateError for types without an order
  bool contains(const Value& element) const;  // `element in *this`

 private:
  template <class Pointer>
  auto pointee() const -> decltype(std::declval<Pointer>().get()) {
    const auto* pointer = std::get_if<Pointer>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  std::variant<Undefined, None, bool, int64_t, double, std::string, std::shared_ptr<const List>,
               std::shared_ptr<Dict>, std::shared_ptr<const Function>>
      data_;
};

// How json.dumps of Python writes a value, with ensure_ascii=False. indent < 0: on one line.
struct JsonStyle {
  int indent = -1;
  std::string item_separator = ", ", key_separator = ": ";
  bool sort_keys = false;
};
std::string to_json(const Value& value, const JsonStyle& style);

std::string float_repr(double value);  // of Python: the shortest text that reads back the same

}  // namespace troupe::model::jinja
