#include "launcher/machine_limits.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/memory.h"
#include "layers/team.h"

namespace troupe::launcher {
namespace {

constexpr size_t kBytes = size_t{256} << 20;
constexpr double kReadSeconds = 0.5;
constexpr double kPeakSeconds = 0.15;

layers::TeamOptions threads_in_use(const Config& config) {
  const int64_t wanted = int64_t{config.parallel.world_size} * config.runtime.threads_per_rank;
  const auto cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return {.threads = static_cast<int>(std::min<int64_t>({wanted, cores, 1024})), .spin = true};
}

}  // namespace

double measure_read_bandwidth(const Config& config) {
  layers::Team team(threads_in_use(config));
  const layers::UseTeam use(team);
  const Mapping memory = Mapping::anonymous(kBytes, Mapping::Pages::kHuge);
  std::memset(memory.data(), 1, memory.size());  // untouched pages would all be one page of zeros
  return layers::measure_read_bandwidth({memory.data(), memory.size()}, kReadSeconds);
}

MachineLimits measure_machine_limits(const Config& config) {
  MachineLimits limits{.read_bytes_per_s = measure_read_bandwidth(config)};
  layers::Team team(threads_in_use(config));
  const layers::UseTeam use(team);
  for (int i = 0; i < layers::kNumArithmetics; ++i)
    limits.operations_per_s[i] =
        layers::measure_peak(static_cast<layers::Arithmetic>(i), kPeakSeconds);
  return limits;
}

double shortest_time(const Work& work, const MachineLimits& limits) {
  double computing = 0;
  for (size_t i = 0; i < work.operations.size(); ++i)
    computing += work.operations[i] / limits.operations_per_s[i];
  return std::max(computing, (work.weight_bytes + work.kv_bytes) / limits.read_bytes_per_s);
}

}  // namespace troupe::launcher
