// launcher/arrivals.h: workloads to replay: when requests come, and how long they are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace troupe::launcher {

struct Arrival {
  double at_s = 0;  // since the start
  int input_tokens = 0, output_tokens = 0;

  bool operator==(const Arrival&) const = default;
};

struct PoissonArrivals {
  int requests = 0;
  double rate = 0;                          // requests per second; 0: all at once
  int input_tokens = 0, output_tokens = 0;  // in the mean: each is drawn between half and 1.5 times
  uint64_t seed = 0;
};
// The same for equal arguments, on every machine.
std::vector<Arrival> poisson_arrivals(const PoissonArrivals& arguments);

// Lines "arrival_s,input_tokens,output_tokens"; empty ones and those that begin with # are left
// out; in order of arrival. UserError with file and line.
std::vector<Arrival> read_arrivals(const std::filesystem::path& file);

}  // namespace troupe::launcher
