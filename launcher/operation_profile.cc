#include "launcher/operation_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

namespace troupe::launcher {
namespace {

// Sums over the spans of the chosen steps of all ranks, by TraceSet::names.
struct Sums {
  std::vector<int64_t> calls, self_ns;
  int64_t steps = 0, step_ns = 0;
};

void add_rank(const TraceSet& set, const ProcessTrace& rank, const ProfiledSteps& steps,
              Sums& sums) {
  const char* const kind = comm::trace_op(steps.kind).name;
  int64_t step_end = 0;
  for (const SpanRecord& span : rank.spans) {  // a step comes before what is inside it
    if (set.is(span, kind) && span.step >= steps.first) {
      step_end = span.end_ns;
      ++sums.steps;
      sums.step_ns += span.end_ns - span.start_ns;
    }
    if (span.end_ns > step_end) continue;
    ++sums.calls[span.name];
    sums.self_ns[span.name] += span.self_ns;
  }
}

}  // namespace

OperationProfile operation_profile(const TraceSet& set, const ProfiledSteps& steps,
                                   const OperationWorks& works) {
  Sums sums{.calls = std::vector<int64_t>(set.names.size()),
            .self_ns = std::vector<int64_t>(set.names.size())};
  for (const ProcessTrace& rank : set.ranks) add_rank(set, rank, steps, sums);
  OperationProfile profile;
  if (sums.steps == 0) return profile;
  const auto count = static_cast<double>(sums.steps);
  profile.steps = sums.steps / std::ssize(set.ranks);
  profile.step_ms = static_cast<double>(sums.step_ns) * 1e-6 / count;
  for (size_t i = 0; i < set.names.size(); ++i) {
    if (sums.calls[i] == 0) continue;
    OperationCost cost{.name = set.names[i].text,
                       .category = set.names[i].category,
                       .calls = static_cast<double>(sums.calls[i]) / count,
                       .ms = static_cast<double>(sums.self_ns[i]) * 1e-6 / count};
    cost.share = cost.ms / profile.step_ms;
    for (const auto& [op, work] : works) {
      if (cost.name != comm::trace_op(op).name) continue;
      cost.mb = (work.weight_bytes + work.kv_bytes) * 1e-6;
      cost.gflop = work.gflop();
    }
    profile.operations.push_back(std::move(cost));
  }
  std::ranges::stable_sort(profile.operations, std::greater(), &OperationCost::ms);
  return profile;
}

nlohmann::json to_json(const OperationProfile& profile) {
  nlohmann::json operations = nlohmann::json::array();
  for (const OperationCost& cost : profile.operations)
    operations.push_back({{"operation", cost.name},
                          {"is", cost.category},
                          {"calls", cost.calls},
                          {"ms", cost.ms},
                          {"share", cost.share},
                          {"mb", cost.mb},
                          {"gb_per_s", cost.gb_per_s()},
                          {"gflop", cost.gflop},
                          {"gflop_per_s", cost.gflop_per_s()}});
  return {{"steps", profile.steps},
          {"step_ms", profile.step_ms},
          {"operations", std::move(operations)}};
}

std::string table(const OperationProfile& profile) {
  std::string text = fmt::format(
      "a step of {:.3f} ms, mean of {}; of a rank, and all ranks' work\n"
      "{:<14}{:<15}{:>8}{:>11}{:>9}{:>11}{:>8}{:>10}{:>9}\n",
      profile.step_ms, profile.steps, "operation", "is", "calls", "ms", "share", "MB", "GB/s",
      "GFLOP", "GFLOP/s");
  for (const OperationCost& cost : profile.operations) {
    text += fmt::format("{:<14}{:<15}{:>8.1f}{:>11.4f}{:>7.1f} %", cost.name, cost.category,
                        cost.calls, cost.ms, 100 * cost.share);
    if (cost.mb > 0 || cost.gflop > 0)
      text += fmt::format("{:>11.2f}{:>8.1f}{:>10.3f}{:>9.0f}", cost.mb, cost.gb_per_s(),
                          cost.gflop, cost.gflop_per_s());
    text += '\n';
  }
  return text;
}

}  // namespace troupe::launcher
