// serve/api_error.h: why a request is refused, in the terms of OpenAI's interface.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace troupe::serve {

class ApiError : public std::runtime_error {
 public:
  ApiError(int status, const std::string& message, std::string param = "", std::string code = "")
      : std::runtime_error(message),
        status_(status),
        param_(std::move(param)),
        code_(std::move(code)) {}
  int status() const { return status_; }
  const std::string& param() const { return param_; }  // the field it is about
  const std::string& code() const { return code_; }
  std::string type() const {
    if (status_ == 401) return "authentication_error";
    if (status_ == 429) return "rate_limit_error";
    return status_ < 500 ? "invalid_request_error" : "server_error";
  }

 private:
  int status_;
  std::string param_, code_;
};

// The body of every answer that is an error, in OpenAI's form. `param` and `code` may be empty.
std::string error_body(const std::string& message, const std::string& type,
                       const std::string& param = "", const std::string& code = "");

}  // namespace troupe::serve
