#include "serve/api_error.h"

#include <nlohmann/json.hpp>

namespace troupe::serve {

std::string error_body(const std::string& message, const std::string& type,
                       const std::string& param, const std::string& code) {
  nlohmann::ordered_json error = {
      {"message", message}, {"type", type}, {"param", nullptr}, {"code", nullptr}};
  if (!param.empty()) error["param"] = param;
  if (!code.empty()) error["code"] = code;
  return nlohmann::ordered_json{{"error", error}}.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace troupe::serve
