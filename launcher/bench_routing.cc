#include "launcher/bench_routing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

namespace troupe::launcher {

// The experts with the smallest of exponential waiting times of rate `weight` are a weighted sample
// without replacement (Efraimidis and Spirakis, 2006).
std::vector<int32_t> draw_experts(int rank, int tokens, Routing routing) {
  std::mt19937 generator(1234 + rank * 77 + tokens);
  std::vector<int32_t> experts;
  for (int token = 0; token < tokens; ++token) {
    std::vector<std::pair<double, int>> waiting(kBenchExperts);
    std::uniform_real_distribution<double> uniform(1e-12, 1);
    for (int e = 0; e < kBenchExperts; ++e) {
      const double weight = routing == Routing::kSkewed ? 1.0 / (1 + e) : 1.0;
      waiting[e] = {-std::log(uniform(generator)) / weight, e};
    }
    std::partial_sort(waiting.begin(), waiting.begin() + kBenchTopk, waiting.end());
    for (int k = 0; k < kBenchTopk; ++k) experts.push_back(waiting[k].second);
  }
  return experts;
}

std::vector<int64_t> rows_to_ranks(comm::ProcessGroup& group, int tokens, Routing routing) {
  const int size = group.size();
  const int experts_per_rank = (kBenchExperts + size - 1) / size;
  const std::vector<int32_t> experts = draw_experts(group.rank(), tokens, routing);
  std::vector<int64_t> rows(size);
  for (int token = 0; token < tokens; ++token) {
    std::vector<bool> hit(size);
    for (int k = 0; k < kBenchTopk; ++k)
      hit[experts[token * kBenchTopk + k] / experts_per_rank] = true;
    for (int r = 0; r < size; ++r) rows[r] += hit[r];
  }
  if (routing == Routing::kSkewed) return rows;
  const int64_t mine = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  std::vector<int64_t> of_all(size);
  group.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(of_all)));
  const int64_t total = std::accumulate(of_all.begin(), of_all.end(), int64_t{0});
  const int64_t pairs = int64_t{size} * size;
  std::fill(rows.begin(), rows.end(), (total + pairs - 1) / pairs);
  return rows;
}

std::string routing_case(int tokens, Routing routing) {
  return fmt::format("T={} {}", tokens, routing == Routing::kSkewed ? "skewed" : "uniform");
}

}  // namespace troupe::launcher
