// bench/peer_rows.h: how the peers of `troupe bench collectives` measure and print, whatever
// library moves their bytes.
//
// Each iteration: barrier, then the operation; its time is the maximum over the ranks; a row gives
// the median and the 10th and 90th percentile of the iterations.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace peer {

inline constexpr size_t kReduced[] = {14336, 114688, 1u << 20, 4u << 20, 16u << 20};
inline constexpr size_t kGathered[] = {14336, 114688, 1u << 20, 4u << 20};  // of one rank

struct Times {
  double p10_us, p50_us, p90_us;
};

// One rank of the peer. The callables are collectives of all ranks.
class Rows {
 public:
  struct Library {
    std::function<void()> barrier;
    std::function<void(std::vector<double>&)> maximum;  // element by element over the ranks
  };
  // ops: "all", or names of operations separated by commas.
  Rows(int rank, int size, Library library, double seconds, const std::string& ops)
      : rank_(rank),
        size_(size),
        library_(std::move(library)),
        seconds_(seconds),
        ops_(ops == "all" ? ops : "," + ops + ",") {}

  bool wants(const std::string& op) const {
    return ops_ == "all" || ops_.find("," + op + ",") != std::string::npos;
  }

  // Measures `call` and prints its row, if the operation is wanted. bytes 0: no bandwidth.
  void add(const std::string& op, const std::string& op_case, size_t bytes,
           const std::function<void()>& call) const {
    if (!wants(op)) return;
    const Times times = measure(call);
    if (rank_ != 0) return;
    std::printf("%5d %-22s %-18s %12zu %11.2f %11.2f %11.2f ", size_, op.c_str(), op_case.c_str(),
                bytes, times.p50_us, times.p10_us, times.p90_us);
    if (bytes > 0)
      std::printf("%9.2f\n", static_cast<double>(bytes) / times.p50_us * 1e-3);
    else
      std::printf("%9s\n", "-");
    std::fflush(stdout);
  }

  static std::string per_rank(size_t bytes) { return std::to_string(bytes >> 10) + " KiB/rank"; }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Times measure(const std::function<void()>& call) const {
    for (int i = 0; i < 2; ++i) call();
    library_.barrier();
    const auto start = Clock::now();
    for (int i = 0; i < 3; ++i) {
      library_.barrier();
      call();
    }
    std::vector<double> per_call{seconds_since(start) / 3};
    library_.maximum(per_call);
    std::vector<double> times(
        static_cast<size_t>(std::clamp(seconds_ / std::max(per_call[0], 1e-7), 7.0, 5e3)));
    for (double& time : times) {
      library_.barrier();
      const auto called = Clock::now();
      call();
      time = seconds_since(called);
    }
    library_.maximum(times);
    std::sort(times.begin(), times.end());
    const size_t calls = times.size();
    return {times[calls / 10] * 1e6, times[calls / 2] * 1e6, times[calls * 9 / 10] * 1e6};
  }

  int rank_, size_;
  Library library_;
  double seconds_;
  std::string ops_;
};

}  // namespace peer
