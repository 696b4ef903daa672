// comm/trace_ring.h: the memory of a trace (comm/trace.h) and its reading end.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/trace.h"

namespace troupe::comm {

struct ArenaShape;
class TickClock;  // comm/arena_layout.h

// Of all rings of a launch; no trace if num_events is 0.
struct TraceShape {
  int64_t num_events = 0;  // of each ring: a power of two
  int num_layers = 0, num_experts = 0;
  bool on() const { return num_events > 0; }
  size_t ring_bytes(int world_size) const;  // a multiple of 64
};

// One event, 48 bytes:
//
//   0  start       ticks; in a TraceSnapshot nanoseconds of CLOCK_MONOTONIC
//   8  end         of a span, 0 while it is open; of an arrow the round; of a counter its value
//  16  bytes
//  24  tokens      of a span or an arrow, as bytes
//  28  step        0 before the first
//  32  group       of an arrow
//  36  peer        -1 none
//  40  layer       -1 outside layers
//  42  kind, 43 track, 44 which: a TraceOp, or of a counter a TraceCounter
struct TraceEvent {
  enum Kind : uint8_t { kSpan, kSent, kReceived, kCounter };
  int64_t start = 0, end = 0, bytes = 0;
  uint32_t tokens = 0, step = 0, group = 0;
  int32_t peer = -1;
  int16_t layer = -1;
  Kind kind = kSpan;
  TraceTrack track = TraceTrack::kRank;
  uint8_t which = 0;

  TraceOp op() const { return static_cast<TraceOp>(which); }
  TraceCounter counter() const { return static_cast<TraceCounter>(which); }
};
static_assert(sizeof(TraceEvent) == 48);

//   0  written      events ever; number n lies in events[n % num_events]
//   8  num_events  16  world_size, num_layers, num_experts
//  64  sent_bytes   [world_size] by this rank to each, whole run
//      expert_rows  [num_layers][num_experts] computed by this rank, whole run
//      events       [num_events]
struct TraceRing {
  std::atomic<uint64_t> written;
  int64_t num_events;
  int32_t world_size, num_layers, num_experts;

  uint64_t* sent_bytes();
  uint64_t* expert_rows();
  TraceEvent* events();
  void clear(const ArenaShape& shape);
};

// Forgets what the rings hold: for the launcher, while no rank records.
void clear_traces(const Arena& arena);

// What a ring holds, copied out of it.
struct TraceSnapshot {
  uint64_t forgotten = 0;          // events that were overwritten by later ones
  std::vector<TraceEvent> events;  // in the order they began, times in ns
  std::vector<uint64_t> sent_bytes;
  std::vector<uint64_t> expert_rows;  // [num_layers * num_experts]
};
// To be read when the writer has ended (or is known to be still): of one that goes on the oldest
// events may be half overwritten. What no writer writes is left out. One clock for all rings: two
// differ by some 100 nanoseconds.
TraceSnapshot read_trace(const Arena& arena, int ring, const TickClock& clock);

}  // namespace troupe::comm
