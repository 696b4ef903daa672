#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/checked_size.h"
#include "model/jinja/nodes.h"

namespace troupe::model::jinja {
namespace {

[[noreturn]] void fail_operands(const char* operation, const Value& a, const Value& b) {
  throw TemplateError(fmt::format("{} and {}: cannot {}", a.type_name(), b.type_name(), operation));
}

// In integers as long as both are and the result fits, else in floats.
template <class OnIntegers, class OnFloats>
Value arithmetic(const char* what, const Value& a, const Value& b, OnIntegers on_integers,
                 OnFloats on_floats) {
  if (!a.is_number() || !b.is_number()) fail_operands(what, a, b);
  if (a.is_float() || b.is_float()) return on_floats(a.number(), b.number());
  const std::optional<int64_t> result = on_integers(a.integer(), b.integer());
  if (!result) throw TemplateError("a number is too large");
  return *result;
}

Value add(const Value& a, const Value& b) {
  if (a.string() != nullptr && b.string() != nullptr) return *a.string() + *b.string();
  if (a.list() != nullptr && b.list() != nullptr) {
    List out = *a.list();
    out.insert(out.end(), b.list()->begin(), b.list()->end());
    return out;
  }
  return arithmetic("be added", a, b, checked_add<int64_t>, std::plus<double>());
}

Value subtract(const Value& a, const Value& b) {
  return arithmetic("be subtracted", a, b, checked_sub<int64_t>, std::minus<double>());
}

Value multiply(const Value& a, const Value& b) {
  return arithmetic("be multiplied", a, b, checked_mul<int64_t>, std::multiplies<double>());
}

double divisor(const Value& b) {
  if (b.number() == 0) throw TemplateError("division by zero");
  return b.number();
}

Value divide(const Value& a, const Value& b) { return a.number() / divisor(b); }

Value floor_divide(const Value& a, const Value& b) {
  const double divided_by = divisor(b);
  if (a.is_float() || b.is_float()) return std::floor(a.number() / divided_by);
  if (b.integer() == -1) return subtract(Value(int64_t{0}), a);
  const int64_t quotient = a.integer() / b.integer();
  const bool inexact = a.integer() % b.integer() != 0;
  return quotient - (inexact && (a.integer() < 0) != (b.integer() < 0));
}

Value modulo(const Value& a, const Value& b) {
  const double divided_by = divisor(b);
  if (a.is_float() || b.is_float())
    return a.number() - std::floor(a.number() / divided_by) * divided_by;
  return subtract(a, multiply(floor_divide(a, b), b));
}

Value concatenate(const Value& a, const Value& b) { return a.str() + b.str(); }
Value equal(const Value& a, const Value& b) { return a == b; }
Value not_equal(const Value& a, const Value& b) { return !(a == b); }
Value less(const Value& a, const Value& b) { return a.less(b); }
Value greater(const Value& a, const Value& b) { return b.less(a); }
Value less_equal(const Value& a, const Value& b) { return a.less(b) || a == b; }
Value greater_equal(const Value& a, const Value& b) { return b.less(a) || a == b; }
Value in(const Value& a, const Value& b) { return b.contains(a); }
Value not_in(const Value& a, const Value& b) { return !b.contains(a); }

void require_defined(const Value& object, const std::string& looked_for) {
  if (object.is_undefined() || object.is_none())
    throw TemplateError(fmt::format("{} has no '{}'", object.type_name(), looked_for));
}

Value missing(const std::string& name) { return Undefined{name}; }

Value at(const List& list, int64_t index) {
  const auto size = static_cast<int64_t>(list.size());
  if (index < -size || index >= size) return missing(std::to_string(index));
  return list[static_cast<size_t>(index < 0 ? index + size : index)];
}

}  // namespace

Binary::Operation find_operation(const std::string& token) {
  static constexpr std::pair<const char*, Binary::Operation> kOperations[] = {{"+", add},
                                                                              {"-", subtract},
                                                                              {"*", multiply},
                                                                              {"/", divide},
                                                                              {"//", floor_divide},
                                                                              {"%", modulo},
                                                                              {"~", concatenate},
                                                                              {"==", equal},
                                                                              {"!=", not_equal},
                                                                              {"<", less},
                                                                              {">", greater},
                                                                              {"<=", less_equal},
                                                                              {">=", greater_equal},
                                                                              {"in", in},
                                                                              {"not in", not_in}};
  for (const auto& [name, operation] : kOperations)
    if (token == name) return operation;
  return nullptr;
}

Arguments CallArguments::evaluate(Rendering& rendering) const {
  Arguments arguments;
  for (const ExpressionPtr& value : positional)
    arguments.positional.push_back(value->evaluate(rendering));
  for (const auto& [name, value] : named)
    arguments.named.emplace_back(name, value->evaluate(rendering));
  return arguments;
}

Value Literal::evaluate(Rendering& rendering) const {
  rendering.step();
  return value;
}

Value Name::evaluate(Rendering& rendering) const {
  rendering.step();
  Value value = rendering.look_up(name);
  rendering.count_copy(value);
  return value;
}

Value ListDisplay::evaluate(Rendering& rendering) const {
  List list;
  for (const ExpressionPtr& element : elements) list.push_back(element->evaluate(rendering));
  return list;
}

Value DictDisplay::evaluate(Rendering& rendering) const {
  Dict dict;
  for (const auto& [key, value] : items)
    dict.set(key->evaluate(rendering).text("a key"), value->evaluate(rendering));
  return dict;
}

Value Attribute::evaluate(Rendering& rendering) const {
  const Value value = object->evaluate(rendering);
  require_defined(value, name);
  const Dict* dict = value.dict();
  const bool has_methods = dict == nullptr || !dict->is_namespace;
  if (Value method = has_methods ? find_method(value, name) : Undefined{}; !method.is_undefined())
    return method;
  const Value* found = dict == nullptr ? nullptr : dict->find(name);
  return found == nullptr ? missing(name) : *found;
}

Value Subscript::evaluate(Rendering& rendering) const {
  const Value value = object->evaluate(rendering);
  const Value key = index->evaluate(rendering);
  require_defined(value, key.str());
  if (const List* list = value.list(); list != nullptr && key.is_number())
    return at(*list, key.integer());
  if (value.string() != nullptr && key.is_number()) return at(value.elements(), key.integer());
  const std::string* name = key.string();
  if (name == nullptr) return missing(key.str());
  if (const Dict* dict = value.dict())
    if (const Value* found = dict->find(*name)) return *found;
  Value method = find_method(value, *name);
  return method.is_undefined() ? missing(*name) : method;
}

Value Slice::evaluate(Rendering& rendering) const {
  const Value value = object->evaluate(rendering);
  const List elements = value.elements();
  const auto size = static_cast<int64_t>(elements.size());
  const auto bound = [&](const ExpressionPtr& expression, int64_t fallback, int64_t low,
                         int64_t high) {
    if (expression == nullptr) return fallback;
    const Value given = expression->evaluate(rendering);
    if (given.is_none()) return fallback;
    const int64_t index = given.integer();
    return std::clamp(index < 0 ? index + size : index, low, high);
  };
  const int64_t by = step == nullptr ? 1 : step->evaluate(rendering).integer();
  if (by == 0) throw TemplateError("a slice of step 0");
  const bool up = by > 0;
  int64_t i = up ? bound(begin, 0, 0, size) : bound(begin, size - 1, -1, size - 1);
  const int64_t last = up ? bound(end, size, 0, size) : bound(end, -1, -1, size - 1);
  List out;
  for (; up ? i < last : i > last; i += std::clamp<int64_t>(by, -size - 1, size + 1))
    out.push_back(elements[static_cast<size_t>(i)]);
  if (value.string() == nullptr) return out;
  std::string text;
  for (const Value& character : out) text += *character.string();
  return text;
}

Value Call::evaluate(Rendering& rendering) const {
  rendering.step();
  const Value value = function->evaluate(rendering);
  if (value.function() == nullptr)
    throw TemplateError(fmt::format("{} cannot be called", value.type_name()));
  return (*value.function())(arguments.evaluate(rendering));
}

Value FilterCall::evaluate(Rendering& rendering) const {
  return filter(value->evaluate(rendering), arguments.evaluate(rendering));
}

Value TestCall::evaluate(Rendering& rendering) const {
  return test(value->evaluate(rendering), arguments.evaluate(rendering));
}

Value Unary::evaluate(Rendering& rendering) const {
  const Value value = operand->evaluate(rendering);
  if (operation == Operator::kNot) return !value.truth();
  const Value zero(int64_t{0});
  return operation == Operator::kMinus ? subtract(zero, value) : add(zero, value);
}

Value Binary::evaluate(Rendering& rendering) const {
  rendering.step();
  const Value a = left->evaluate(rendering);
  Value result = operation(a, right->evaluate(rendering));
  rendering.count_copy(result);
  return result;
}

Value Logical::evaluate(Rendering& rendering) const {
  Value value = left->evaluate(rendering);
  return value.truth() == is_and ? right->evaluate(rendering) : value;
}

Value Conditional::evaluate(Rendering& rendering) const {
  if (condition->evaluate(rendering).truth()) return then->evaluate(rendering);
  return otherwise == nullptr ? Value(Undefined{}) : otherwise->evaluate(rendering);
}

}  // namespace troupe::model::jinja
