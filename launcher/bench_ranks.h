// launcher/bench_ranks.h: rank processes without a model, for benchmarks of comm.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "comm/process_group.h"

namespace troupe::launcher {

// What one rank runs. What it appends to `report` is handed to the launcher; it is read whole once
// the rank has ended.
using BenchBody = std::function<void(comm::Communicator& communicator, std::string& report)>;

// Makes an arena of that shape, forks a process per rank, runs `body` in each, and returns the
// ranks' reports. Where there are at least as many cores as ranks each rank is pinned to one. The
// ranks die with the caller and none is left when this returns or throws; RankError says which
// failed first and why. To be called before this process has threads.
std::vector<std::string> run_bench_ranks(const comm::ArenaShape& shape,
                                         std::chrono::milliseconds timeout, const BenchBody& body);

// Times of one operation: of each call the slowest rank's, over the calls.
struct BenchTimes {
  double p10_us = 0, p50_us = 0, p90_us = 0;
};

// Calls barrier, then `op`, again and again for about `seconds`; the time is that of `op`, the
// maximum over the ranks. Two calls warm up, three find the number of calls (7 to 5000).
// Collective; every rank of the group gets the same times. As bench/peer_mpi_collectives.cc
// measures MPI.
BenchTimes measure_collective(comm::ProcessGroup& group, double seconds,
                              const std::function<void()>& op);

}  // namespace troupe::launcher
