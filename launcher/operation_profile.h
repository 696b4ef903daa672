// launcher/operation_profile.h: time by operation of a benchmark's steps, beside the work of each:
// what `bench decode|prefill --profile` prints.
//
// Spans of the launch's trace (launcher/trace_reader.h) count with the time that no span inside
// them takes, so the times of a step's operations add up to the step. With several ranks a time is
// their mean, while work is what all of them do together: work / time is the machine's rate.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launcher/forward_work.h"
#include "launcher/trace_reader.h"

namespace troupe::launcher {

struct OperationCost {
  std::string name, category;  // "experts", "compute"
  double calls = 0, ms = 0;    // of a step, of a rank
  double share = 0;            // of the step's time, 0 to 1
  double mb = 0,
         gflop = 0;  // weights and KV read, operations; of a step, all ranks; 0: not counted

  double gb_per_s() const { return ms == 0 ? 0 : mb / ms; }
  double gflop_per_s() const { return ms == 0 ? 0 : gflop / ms * 1e3; }
};

// Which steps count: those of one kind, from a step number on, as far as the trace still has them.
struct ProfiledSteps {
  comm::TraceOp kind = comm::TraceOp::kDecode;  // or kPrefill
  int32_t first = 0;
};

struct OperationProfile {
  int64_t steps = 0;  // of a rank
  double step_ms = 0;
  std::vector<OperationCost> operations;  // the longest first
};

// works: of one step; empty where it is not known.
OperationProfile operation_profile(const TraceSet& set, const ProfiledSteps& steps,
                                   const OperationWorks& works);

nlohmann::json to_json(const OperationProfile& profile);
std::string table(const OperationProfile& profile);  // for people

}  // namespace troupe::launcher
