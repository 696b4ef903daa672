// Jinja2's tests: what may stand behind `is`.
#include "model/jinja/syntax.h"

namespace troupe::model::jinja {
namespace {

const Value& argument(const Arguments& arguments) {
  if (arguments.positional.empty()) throw TemplateError("the test needs an argument");
  return arguments.positional[0];
}

bool has_elements(const Value& value) {
  return value.is_undefined() || value.string() != nullptr || value.list() != nullptr ||
         value.dict() != nullptr;
}

int64_t remainder(const Value& value, int64_t divisor) {
  if (divisor == 0) throw TemplateError("division by zero");
  return divisor == -1 ? 0 : value.integer() % divisor;
}

using Arg = const Arguments&;
constexpr std::pair<const char*, Test> kTests[] = {
    {"defined", [](const Value& v, Arg) { return !v.is_undefined(); }},
    {"undefined", [](const Value& v, Arg) { return v.is_undefined(); }},
    {"none", [](const Value& v, Arg) { return v.is_none(); }},
    {"true", [](const Value& v, Arg) { return v.is_bool() && v.truth(); }},
    {"false", [](const Value& v, Arg) { return v.is_bool() && !v.truth(); }},
    {"boolean", [](const Value& v, Arg) { return v.is_bool(); }},
    {"integer", [](const Value& v, Arg) { return v.is_integer(); }},
    {"float", [](const Value& v, Arg) { return v.is_float(); }},
    {"number", [](const Value& v, Arg) { return v.is_number(); }},
    {"string", [](const Value& v, Arg) { return v.string() != nullptr; }},
    {"mapping", [](const Value& v, Arg) { return v.dict() != nullptr; }},
    {"iterable", [](const Value& v, Arg) { return has_elements(v); }},
    {"sequence", [](const Value& v, Arg) { return has_elements(v); }},
    {"callable", [](const Value& v, Arg) { return v.function() != nullptr; }},
    {"even", [](const Value& v, Arg) { return remainder(v, 2) == 0; }},
    {"odd", [](const Value& v, Arg) { return remainder(v, 2) != 0; }},
    {"divisibleby", [](const Value& v, Arg a) { return remainder(v, argument(a).integer()) == 0; }},
    {"in", [](const Value& v, Arg a) { return argument(a).contains(v); }},
    {"eq", [](const Value& v, Arg a) { return v == argument(a); }},
    {"equalto", [](const Value& v, Arg a) { return v == argument(a); }},
    {"ne", [](const Value& v, Arg a) { return !(v == argument(a)); }},
};

}  // namespace

Test find_test(const std::string& name) {
  for (const auto& [known, test] : kTests)
    if (name == known) return test;
  return nullptr;
}

}  // namespace troupe::model::jinja
