// serve/load_client.h: a load of requests for an OpenAI-compatible server, and what its users felt.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/arrivals.h"

namespace troupe::serve {

struct LoadTarget {
  std::string host, port;
  std::string model;    // "": the first that the server has
  std::string api_key;  // "": none
};
// "http://HOST[:PORT]", a slash may follow. UserError for anything else.
LoadTarget parse_url(const std::string& url);

// Of one request; seconds since it was sent. Without tokens it has failed.
struct RequestTimes {
  double ttft_s = 0, end_s = 0;
  std::vector<double> gaps_s;  // from event to event
  int64_t input_tokens = 0, output_tokens = 0;
  std::string error;

  double tpot_s() const {
    return output_tokens > 1 ? (end_s - ttft_s) / static_cast<double>(output_tokens - 1) : 0;
  }
};

struct LoadResult {
  std::string model;
  std::vector<RequestTimes> requests;  // in the order of arrival
  double seconds = 0;                  // from the first request sent to the last answer
};

// Sends a streamed completion of random tokens for each arrival when it is due, at most
// `concurrency` at a time, each on a thread and a connection of its own. UserError when the server
// cannot be asked at all; a request that fails says so in its times.
LoadResult run_load(const LoadTarget& target, const std::vector<launcher::Arrival>& arrivals,
                    int concurrency);

}  // namespace troupe::serve
