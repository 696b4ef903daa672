#include "comm/heartbeat.h"

#include <algorithm>
#include <vector>

#include "comm/arena_layout.h"

namespace troupe::comm {
namespace {

constexpr int64_t kIntervalNs = 1'000'000'000;
constexpr int kBeatsPerTimeout = 4;  // at least
// A rank that runs may be late by a time slice of each of many others on its core.
constexpr int kSilentBeats = 3;

// Its turn to act is the launcher's.
bool waits_for_launcher(Stage stage) { return stage == Stage::kIdle || stage == Stage::kStopping; }

}  // namespace

int64_t heartbeat_interval_ns(std::chrono::milliseconds timeout) {
  return std::min(kIntervalNs, std::chrono::nanoseconds(timeout).count() / kBeatsPerTimeout);
}

int64_t silence_ns(const Arena& arena, int rank) {
  int64_t last = arena.snapshot(rank).beat_ns;
  for (const FlightRecord& flight : arena.flights(rank))
    last = std::max({last, flight.start_ns, flight.end_ns});
  return std::max<int64_t>(0, now_ns() - last);
}

bool is_silent(const Arena& arena, int rank, std::chrono::milliseconds timeout) {
  return silence_ns(arena, rank) > kSilentBeats * heartbeat_interval_ns(timeout);
}

Blame find_blame(const Arena& arena, int waiter, int for_rank, std::chrono::milliseconds timeout) {
  const int world_size = arena.shape().world_size;
  std::vector<bool> runs(world_size);  // as far as the chain has shown
  runs[waiter] = true;
  int rank = for_rank;
  while (rank >= 0 && rank < world_size && !runs[rank]) {
    const int next = arena.snapshot(rank).waiting_for;
    const bool silent = is_silent(arena, rank, timeout);
    if (next < 0 || silent) return {Blame::Kind::kEndOfChain, rank, silent};
    runs[rank] = true;
    rank = next;
  }
  Blame blame;
  int64_t longest = kSilentBeats * heartbeat_interval_ns(timeout);
  for (int other = 0; other < world_size; ++other) {
    const int64_t silence = silence_ns(arena, other);
    if (runs[other] || silence <= longest || waits_for_launcher(arena.snapshot(other).stage))
      continue;
    longest = silence;
    blame = {Blame::Kind::kOutsideCircle, other, true};
  }
  return blame;
}

}  // namespace troupe::comm
