// launcher/machine_limits.h: the roofs of this machine for the threads that a configuration uses.
#pragma once

#include <array>

#include "launcher/config.h"
#include "launcher/forward_work.h"
#include "layers/peak.h"

namespace troupe::launcher {

struct MachineLimits {
  double read_bytes_per_s = 0;
  std::array<double, layers::kNumArithmetics> operations_per_s{};  // by layers::Arithmetic
};

// Measured in this process with as many threads as the ranks will have together, at most one per
// core; takes a second and 256 MiB, which are given back.
MachineLimits measure_machine_limits(const Config& config);
double measure_read_bandwidth(const Config& config);  // that part of it alone

// Seconds in which the machine could do that work: reading and computing overlap.
double shortest_time(const Work& work, const MachineLimits& limits);

}  // namespace troupe::launcher
