// serve/request_fields.h: the fields of a request's JSON, each checked where it is read.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::serve {

using Json = nlohmann::ordered_json;  // chat templates see the fields in the client's order

// A field that is null counts as missing. All errors are ApiError with status 400, naming the
// field.
class RequestFields {
 public:
  // Nested at most 64 deep, an object.
  explicit RequestFields(const std::string& body);
  explicit RequestFields(Json object);

  // The value, or null when it is missing.
  const Json* find(const std::string& name);
  double number(const std::string& name, double min, double max, double fallback);
  int64_t integer(const std::string& name, int64_t min, int64_t max, int64_t fallback);
  bool boolean(const std::string& name, bool fallback);
  std::string string(const std::string& name, const std::string& fallback);
  // A string or a list of strings.
  std::vector<std::string> strings(const std::string& name);
  // A list of integers.
  std::vector<int32_t> integers(const std::string& name, int64_t min, int64_t max);
  // For what can be had in one way only: any other value than these is refused.
  void allow_only(const std::string& name, const std::vector<Json>& values);

  // Call last: a field that nobody has asked for is refused by name.
  void refuse_others() const;

 private:
  Json object_;
  std::set<std::string, std::less<>> known_;
};

// ApiError unless it is JSON, nested at most 64 deep.
Json parse_bounded_json(const std::string& text);

// `value` as an integer in [min, max].
int64_t checked_integer(const Json& value, const std::string& name, int64_t min, int64_t max);

}  // namespace troupe::serve
