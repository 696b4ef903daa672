// serve/load_report.h: the figures of a load, under the names of `vllm bench serve`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "serve/load_client.h"

namespace troupe::serve {

// What a request must keep to count as good; 0: anything.
struct ServiceLevel {
  double ttft_ms = 0, tpot_ms = 0, e2el_ms = 0;
  bool kept_by(const RequestTimes& times) const;
};
// "ttft:200", "tpot:50", "e2el:3000". UserError for anything else.
ServiceLevel parse_goodput(const std::vector<std::string>& words);

nlohmann::ordered_json load_json(const LoadResult& load, double request_rate, int concurrency,
                                 const ServiceLevel& level);
std::string load_table(const nlohmann::ordered_json& figures);

}  // namespace troupe::serve
