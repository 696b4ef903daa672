// serve/http_server.h: HTTP/1.1 over TCP: connections, limits, keep-alive, answers in parts.
//
// Boost.Beast parses requests; nothing here knows what they mean. Every connection is a small state
// machine on a few threads of its own: it takes no thread and no buffer while it waits, so
// thousands may be idle or slow, and none of them can hold up another or a step of the ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "serve/http_limits.h"
#include "serve/http_message.h"

namespace troupe::serve {

class HttpServer {
 public:
  // Listens at once; connections wait until start(). `port` 0 takes a free one. UserError when
  // `host` is no address of this machine or the port is taken.
  HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits);
  ~HttpServer();  // stops, and closes every connection

  uint16_t port() const;
  // Serves on threads of its own, with every signal blocked. `handler` is called by any of them
  // and must not wait for anything; what it throws is answered as an internal error.
  void start(HttpHandler handler);
  int connections() const;
  int open_answers() const;  // begun, and neither sent to the end nor given up

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::serve
