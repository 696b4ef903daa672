#include "serve/load_report.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "launcher/serve_replay.h"

namespace troupe::serve {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kMeasures[] = {"ttft", "tpot", "itl", "e2el"};

void add_statistics(Json& json, const std::string& name, const std::vector<double>& seconds) {
  const auto count = static_cast<double>(std::max<size_t>(1, seconds.size()));
  const double mean = std::accumulate(seconds.begin(), seconds.end(), 0.0) / count;
  double squares = 0;
  for (const double s : seconds) squares += (s - mean) * (s - mean);
  json["mean_" + name + "_ms"] = 1000 * mean;
  json["median_" + name + "_ms"] = 1000 * launcher::percentile(seconds, 0.5);
  json["std_" + name + "_ms"] = 1000 * std::sqrt(squares / count);
  for (const int p : {90, 95, 99})
    json[fmt::format("p{}_{}_ms", p, name)] = 1000 * launcher::percentile(seconds, p / 100.0);
}

}  // namespace

bool ServiceLevel::kept_by(const RequestTimes& times) const {
  const auto within = [](double seconds, double limit_ms) {
    return limit_ms <= 0 || 1000 * seconds <= limit_ms;
  };
  return within(times.ttft_s, ttft_ms) && within(times.tpot_s(), tpot_ms) &&
         within(times.end_s, e2el_ms);
}

ServiceLevel parse_goodput(const std::vector<std::string>& words) {
  ServiceLevel level;
  for (const std::string& word : words) {
    const std::string name = word.substr(0, word.find(':'));
    double* const value = name == "ttft"   ? &level.ttft_ms
                          : name == "tpot" ? &level.tpot_ms
                          : name == "e2el" ? &level.e2el_ms
                                           : nullptr;
    char* end = nullptr;
    const char* const number = word.c_str() + std::min(word.size(), name.size() + 1);
    if (value != nullptr) *value = std::strtod(number, &end);
    if (value == nullptr || end == number || *end != '\0' || !(*value > 0))
      throw_user_error("--goodput {}: write it as ttft:MS, tpot:MS or e2el:MS", word);
  }
  return level;
}

Json load_json(const LoadResult& load, double request_rate, int concurrency,
               const ServiceLevel& level) {
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t input = 0, output = 0, good = 0;
  Json errors = Json::array();
  for (const RequestTimes& times : load.requests) {
    if (!times.error.empty() || times.output_tokens == 0) {
      errors.push_back(times.error.empty() ? "no tokens came" : times.error);
      continue;
    }
    ttft.push_back(times.ttft_s);
    if (times.output_tokens > 1) tpot.push_back(times.tpot_s());
    itl.insert(itl.end(), times.gaps_s.begin(), times.gaps_s.end());
    e2el.push_back(times.end_s);
    input += times.input_tokens;
    output += times.output_tokens;
    good += level.kept_by(times);
  }
  const auto rate = [&](auto count) { return static_cast<double>(count) / load.seconds; };
  Json json = {{"backend", "openai"},
               {"model_id", load.model},
               {"num_prompts", load.requests.size()},
               {"request_rate", request_rate > 0 ? Json(request_rate) : Json("inf")},
               {"max_concurrency", concurrency},
               {"duration", load.seconds},
               {"completed", ttft.size()},
               {"failed", errors.size()},
               {"total_input_tokens", input},
               {"total_output_tokens", output},
               {"request_throughput", rate(ttft.size())},
               {"request_goodput", rate(good)},
               {"output_throughput", rate(output)},
               {"total_token_throughput", rate(input + output)}};
  add_statistics(json, "ttft", ttft);
  add_statistics(json, "tpot", tpot);
  add_statistics(json, "itl", itl);
  add_statistics(json, "e2el", e2el);
  json["errors"] = std::move(errors);
  return json;
}

std::string load_table(const Json& f) {
  const auto number = [&](const std::string& name) { return f.at(name).get<double>(); };
  std::string text = fmt::format(
      "{} requests ({} failed), {} tokens in, {} out in {:.2f} s\n"
      "{:.2f} requests/s, of them good {:.2f}; {:.1f} tokens/s out, {:.1f} with those in\n"
      "{:<6}{:>10}{:>10}{:>10}{:>10}{:>10}\n",
      f.at("num_prompts").get<int64_t>(), f.at("failed").get<int64_t>(),
      f.at("total_input_tokens").get<int64_t>(), f.at("total_output_tokens").get<int64_t>(),
      number("duration"), number("request_throughput"), number("request_goodput"),
      number("output_throughput"), number("total_token_throughput"), "ms", "mean", "p50", "p90",
      "p95", "p99");
  for (const std::string name : kMeasures) {
    text += fmt::format("{:<6}", name);
    for (const char* statistic : {"mean", "median", "p90", "p95", "p99"})
      text += fmt::format("{:>10.2f}", number(fmt::format("{}_{}_ms", statistic, name)));
    text += "\n";
  }
  return text;
}

}  // namespace troupe::serve
