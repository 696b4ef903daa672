// serve/http_message.h: a request as the server has read it, and what is answered.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace troupe::serve {

struct HttpRequest {
  std::string method, path;  // the path without what follows a '?'
  std::string authorization, content_type;
  std::string body;
};

struct HttpHead {
  int status = 200;
  std::string content_type = "application/json";
  bool streamed = false;  // parts go out as they become ready; else all of it at once
  std::vector<std::pair<std::string, std::string>> fields = {};
};

// What is answered to one request, as it becomes ready. Its connection asks, always from one thread
// at a time; it is destroyed when it has been sent, or when the client has gone.
class HttpAnswer {
 public:
  enum class State { kMore, kDone };

  virtual ~HttpAnswer() = default;
  // Appends what is ready to `body`. With kMore the connection asks again once it has been woken,
  // and only after the client has taken what it was given: what a slow client does not take waits
  // here.
  virtual State take(std::string& body) = 0;
  // Asked once take() has given something or is done.
  virtual HttpHead head() const = 0;
};

// Wakes the connection; from any thread, also after the connection's end.
using Wake = std::function<void()>;
using HttpHandler = std::function<std::unique_ptr<HttpAnswer>(HttpRequest, Wake)>;

// An answer that is ready.
std::unique_ptr<HttpAnswer> whole_answer(HttpHead head, std::string body);

}  // namespace troupe::serve
