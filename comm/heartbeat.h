// comm/heartbeat.h: which ranks still run, as far as shared memory can tell, and who is to blame
// when nobody moves.
//
// A rank that waits for others in a collective looks up every heartbeat_interval_ns() at the latest
// and stores the time (Activity::beat_ns); so one that waits and is silent for several intervals
// has been stopped (SIGSTOP), or the machine does not let it run. A rank that computes stores the
// time when it enters a step or a layer, and its flight recorder has the time of each collective:
// its silence may be work. An idle rank waits for the launcher's plan and is silent as long as
// there is none.
//
// For ranks' error messages and the launcher's reports; any process that has the arena may ask.
#pragma once

#include <chrono>
#include <cstdint>

#include "comm/arena.h"

namespace troupe::comm {

// timeout: the ranks' deadline for waits (comm_timeout_s). A second, less where that is short.
int64_t heartbeat_interval_ns(std::chrono::milliseconds timeout);

// For how long the rank has given no sign of life: no heartbeat, no collective begun or ended.
int64_t silence_ns(const Arena& arena, int rank);

// Whether that is longer than a rank that waits in a collective is ever silent while it runs.
bool is_silent(const Arena& arena, int rank, std::chrono::milliseconds timeout);

// Why `waiter` waits for `for_rank` in vain.
struct Blame {
  enum class Kind {
    kEndOfChain,     // the first along the chain of waits that does not wait, or is stopped
    kOutsideCircle,  // the chain is a circle of ranks that run: the one that was silent longest
    kNobody,         // such a circle, and no rank is silent
  };
  Kind kind = Kind::kNobody;
  int rank = -1;
  bool silent = false;
};
Blame find_blame(const Arena& arena, int waiter, int for_rank, std::chrono::milliseconds timeout);

}  // namespace troupe::comm
