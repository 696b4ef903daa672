// serve/http_limits.h: what a client may cost.
#pragma once

#include <chrono>
#include <cstddef>

namespace troupe::serve {

struct HttpLimits {
  size_t header_bytes = 16 << 10;  // request line and fields
  size_t body_bytes = 8 << 20;
  int connections = 16384;
  // Each is for the whole of it, however often a byte comes.
  std::chrono::milliseconds header_time{10'000};
  std::chrono::milliseconds body_time{60'000};
  std::chrono::milliseconds idle_time{75'000};   // between requests, and before the first
  std::chrono::milliseconds write_time{60'000};  // for the client to take one part of an answer
};

}  // namespace troupe::serve
