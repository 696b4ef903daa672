#include "serve/request_fields.h"

#include <algorithm>
#include <cmath>

#include "model/json_file.h"
#include "serve/api_error.h"

namespace troupe::serve {

namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
  throw ApiError(400, fmt::format("'{}' {}", model::printable(name), what), name);
}

}  // namespace

Json parse_bounded_json(const std::string& text) {
  static constexpr int kMaxDepth = 64;
  const auto bounded = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxDepth)
      throw ApiError(400, fmt::format("JSON is nested deeper than {} levels", kMaxDepth));
    return true;
  };
  try {
    return Json::parse(text, bounded);
  } catch (const Json::exception& error) {
    throw ApiError(400, "not valid JSON: " + model::printable(error.what()));
  }
}

RequestFields::RequestFields(const std::string& body) : RequestFields(parse_bounded_json(body)) {}

RequestFields::RequestFields(Json object) : object_(std::move(object)) {
  if (!object_.is_object()) throw ApiError(400, "the body must be a JSON object");
}

const Json* RequestFields::find(const std::string& name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

double RequestFields::number(const std::string& name, double min, double max, double fallback) {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_number()) refuse(name, "must be a number");
  const auto number = value->get<double>();
  if (!(number >= min && number <= max))
    refuse(name, fmt::format("must be from {} to {}", min, max));
  return number;
}

int64_t checked_integer(const Json& value, const std::string& name, int64_t min, int64_t max) {
  if (!value.is_number_integer()) refuse(name, "must be an integer");
  const bool too_large =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_large ? INT64_MAX : value.get<int64_t>();
  if (too_large || number < min || number > max)
    refuse(name, fmt::format("must be from {} to {}", min, max));
  return number;
}

int64_t RequestFields::integer(const std::string& name, int64_t min, int64_t max,
                               int64_t fallback) {
  const Json* value = find(name);
  return value == nullptr ? fallback : checked_integer(*value, name, min, max);
}

bool RequestFields::boolean(const std::string& name, bool fallback) {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) refuse(name, "must be true or false");
  return value->get<bool>();
}

std::string RequestFields::string(const std::string& name, const std::string& fallback) {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_string()) refuse(name, "must be a string");
  return value->get<std::string>();
}

std::vector<std::string> RequestFields::strings(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) refuse(name, "must be a string or a list of strings");
  std::vector<std::string> result;
  for (const Json& element : *value) {
    if (!element.is_string()) refuse(name, "must be a string or a list of strings");
    result.push_back(element.get<std::string>());
  }
  return result;
}

std::vector<int32_t> RequestFields::integers(const std::string& name, int64_t min, int64_t max) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_array()) refuse(name, "must be a list of integers");
  std::vector<int32_t> result;
  for (const Json& element : *value)
    result.push_back(static_cast<int32_t>(checked_integer(element, name, min, max)));
  return result;
}

void RequestFields::allow_only(const std::string& name, const std::vector<Json>& values) {
  const Json* value = find(name);
  if (value == nullptr || std::ranges::find(values, *value) != values.end()) return;
  std::string allowed;
  for (const Json& one : values) allowed += (allowed.empty() ? "" : " or ") + one.dump();
  refuse(name, fmt::format("is not supported here; it may be {}, or left out", allowed));
}

void RequestFields::refuse_others() const {
  for (const auto& [name, value] : object_.items())
    if (!known_.contains(name)) refuse(name, "is not a parameter that is supported here");
}

}  // namespace troupe::serve
