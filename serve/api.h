// serve/api.h: the endpoints: from a path to who answers.
#pragma once

#include <memory>
#include <string>

#include "serve/backend.h"
#include "serve/generation_request.h"
#include "serve/http_message.h"
#include "serve/served_model.h"

namespace troupe::serve {

class Api {
 public:
  // All must outlive this. `api_key` empty: everybody is answered.
  Api(const ServedModel& model, Backend& backend, std::string api_key)
      : model_(model), backend_(backend), api_key_(std::move(api_key)) {}

  // From any thread. Errors of the client are answers too, in OpenAI's form.
  std::unique_ptr<HttpAnswer> handle(HttpRequest request, Wake wake) const;

 private:
  using Answer = std::unique_ptr<HttpAnswer>;
  Answer route(HttpRequest& request, Wake wake) const;
  Answer generate(Endpoint endpoint, const HttpRequest& request, Wake wake) const;
  Answer tokenize(const HttpRequest& request) const;
  Answer detokenize(const HttpRequest& request) const;
  Answer models(const std::string& path) const;
  Answer health(const std::string& path) const;
  Answer status() const;
  void require_key(const HttpRequest& request) const;

  const ServedModel& model_;
  Backend& backend_;
  const std::string api_key_;
};

}  // namespace troupe::serve
