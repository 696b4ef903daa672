#include "launcher/arrivals.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "base/error.h"
#include "launcher/requests.h"
#include "layers/sampler.h"

namespace troupe::launcher {

namespace {

constexpr int kMaxTokens = 1 << 24;

int drawn_length(int mean, double number) {
  const double length = mean * (0.5 + number);
  return std::max(1, static_cast<int>(std::lround(length)));
}

bool parse(const std::string& line, Arrival& arrival) {
  int end = -1;
  const int fields = std::sscanf(line.c_str(), " %lf , %d , %d %n", &arrival.at_s,
                                 &arrival.input_tokens, &arrival.output_tokens, &end);
  const auto is_count = [](int n) { return n > 0 && n <= kMaxTokens; };
  return fields == 3 && end == std::ssize(line) && std::isfinite(arrival.at_s) &&
         arrival.at_s >= 0 && is_count(arrival.input_tokens) && is_count(arrival.output_tokens);
}

}  // namespace

std::vector<Arrival> poisson_arrivals(const PoissonArrivals& arguments) {
  std::vector<Arrival> arrivals;
  double now = 0;
  for (int i = 0; i < arguments.requests; ++i) {
    const auto number = [&](uint32_t which) { return layers::uniform(arguments.seed, which, i); };
    if (arguments.rate > 0) now -= std::log1p(-number(0)) / arguments.rate;
    arrivals.push_back({now, drawn_length(arguments.input_tokens, number(1)),
                        drawn_length(arguments.output_tokens, number(2))});
  }
  return arrivals;
}

std::vector<Arrival> read_arrivals(const std::filesystem::path& file) {
  std::istringstream in(read_text_file(file));
  std::vector<Arrival> arrivals;
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos || line.starts_with('#')) continue;
    Arrival arrival;
    if (!parse(line, arrival))
      throw_user_error("{}:{}: expected arrival_s,input_tokens,output_tokens, as 1.5,128,32",
                       file.string(), number);
    arrivals.push_back(arrival);
  }
  if (arrivals.empty()) throw_user_error("{}: no arrivals", file.string());
  std::ranges::stable_sort(arrivals, {}, &Arrival::at_s);
  return arrivals;
}

}  // namespace troupe::launcher
