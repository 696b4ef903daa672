// launcher/trace_summary.h: where the time went, in numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/trace_reader.h"

namespace troupe::launcher {

// Times in which no step was under way and the launcher had nothing to plan: before the first
// request, between the turns of a chat, at the end. The first may begin before all events, the last
// end after them. None where the trace has no plans.
struct Pause {
  int64_t start_ns = 0, end_ns = 0;
};
std::vector<Pause> pauses(const TraceSet& set);

// Of one rank, over the time its trace covers. A span counts with the time that no span inside it
// takes, so these add up to the time that spans cover.
struct RankTime {
  int64_t steps = 0;
  int64_t compute_ns = 0;        // operations
  int64_t communication_ns = 0;  // copying and bookkeeping of collectives
  int64_t wait_ns = 0;           // for other ranks, inside collectives
  int64_t plan_ns = 0;           // for the scheduler's plan, and the answers of all before it
  int64_t other_ns = 0;          // messages between actors
  int64_t idle_ns = 0;           // for a plan in pauses(): nobody asked for anything
  int64_t busy_ns() const { return compute_ns + communication_ns + wait_ns + plan_ns + other_ns; }
};
RankTime rank_time(const TraceSet& set, int rank);

// Time of an operation itself over all ranks, pauses left out; largest first.
struct OperationTime {
  int32_t name = 0;
  int64_t calls = 0, self_ns = 0;
};
std::vector<OperationTime> operation_times(const TraceSet& set);

// The chain of work that decided how long a step took: from the rank that ended it last, back in
// time; where that rank had waited for another, on to that one at the moment it was waited for.
struct CriticalPath {
  struct Piece {  // work of one rank, latest first
    int rank = 0;
    int32_t name = 0;  // "wait": what it waits for is done, it has not run since (wake-up)
    int64_t start_ns = 0, end_ns = 0;
  };
  int32_t step = 0;                  // 0: the trace has no whole step
  int64_t start_ns = 0, end_ns = 0;  // first rank begins, last rank ends
  std::vector<Piece> pieces;
};
// Of the step of median duration among the decode steps that all ranks have whole; of the prefill
// steps if there is none.
CriticalPath critical_path(const TraceSet& set);

// max / mean; 1 if all are equal or zero.
double imbalance(const std::vector<double>& values);

std::string trace_summary(const TraceSet& set);  // a table for people

}  // namespace troupe::launcher
