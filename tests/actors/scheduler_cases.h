// tests/actors/scheduler_cases.h: requests and limits from which tests of the scheduler start.
#pragma once

#include <functional>
#include <string>

#include "actors/scheduler.h"
#include "base/error.h"

namespace troupe::actors {

inline constexpr int kFirstToken = 10;  // prompts are 10, 11, 12, ...

inline Request request(int prompt_tokens, int max_new_tokens) {
  Request r;
  r.max_new_tokens = max_new_tokens;
  for (int i = 0; i < prompt_tokens; ++i) r.prompt.push_back(kFirstToken + i);
  return r;
}

inline SchedulerLimits one_rank() {
  return {.world_size = 1,
          .batch_size = 4,
          .max_prefill_tokens = 100,
          .max_positions = 1000,
          .block_size = 4,
          .blocks_per_dp_rank = 1000};
}

inline SchedulerLimits ranks(int world_size, int batch_size) {
  SchedulerLimits limits = one_rank();
  limits.world_size = world_size;
  limits.batch_size = batch_size;
  return limits;
}

inline SchedulerLimits with_drafts(int num_drafts) {
  SchedulerLimits limits = one_rank();
  limits.num_drafts = num_drafts;
  limits.run_mtp = true;
  return limits;
}

inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const RankError& error) {
    return error.what();
  }
  return "no RankError";
}

}  // namespace troupe::actors
