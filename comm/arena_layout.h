// comm/arena_layout.h: the structs of the arena, byte by byte. Only comm/ includes this.
//
// Words that different processes write lie on different cache lines, so that a rank that polls a
// word is not disturbed by its neighbour's writes. Everything starts as zero bytes.
#pragma once

#include "comm/arena.h"

namespace troupe::comm {

static_assert(std::atomic<uint64_t>::is_always_lock_free, "atomics work between processes");

inline constexpr size_t kCacheLine = 64;
inline constexpr uint64_t kSlotsPerWindow = 2;

//   0  aborted       1 once the launch is ending
//   4  first_failed  1 + the rank that published a failure first, 0 none
//   8  world_size    )
//  16  slot_bytes    ) written by create(), checked by attach()
//  24  start_ticks   ) one moment on both clocks, written by create(): what turns the ticks of a
//  32  start_ns      ) Flight into nanoseconds
//  40  faults_struck  injected faults that have come to their place; any rank counts
//  64  figures        written by the launcher
// 128
struct alignas(kCacheLine) Arena::LaunchState {
  std::atomic<uint32_t> aborted;
  std::atomic<uint32_t> first_failed;
  int32_t world_size;
  uint64_t slot_bytes;
  uint64_t start_ticks;
  int64_t start_ns;
  std::atomic<uint32_t> faults_struck;
  struct alignas(kCacheLine) {
    std::atomic<uint64_t> prompt_tokens, new_tokens;
    std::atomic<int32_t> running, waiting;
    std::atomic<int64_t> kv_blocks_in_use, kv_blocks;
  } figures;
};
static_assert(sizeof(Arena::LaunchState) == 128);

//   0  doorbell        futex word; whoever rings adds one and wakes
//   4  sleeping_for    whom the rank sleeps for (below); set by the rank, cleared by who wakes it
//  64  activity        written by the rank
// 128  failure_length  0: none; stored after the text
// 132  failure_text    not terminated
// 644  blamed          1 + the rank that this failure is put down to, 0 none
// 704
struct alignas(kCacheLine) Arena::RankState {
  std::atomic<uint32_t> doorbell;
  std::atomic<uint32_t> sleeping_for;
  alignas(kCacheLine) Activity activity;
  alignas(kCacheLine) std::atomic<uint32_t> failure_length;
  char failure_text[kFailureTextBytes];
  std::atomic<int32_t> blamed;
};
static_assert(offsetof(Arena::RankState, sleeping_for) == 4);
static_assert(offsetof(Arena::RankState, activity) == 64);
static_assert(offsetof(Arena::RankState, failure_length) == 128);
static_assert(offsetof(Arena::RankState, failure_text) == 132);
static_assert(offsetof(Arena::RankState, blamed) == 644);
static_assert(sizeof(Arena::RankState) == 704);

// One collective of a rank in its flight recorder, a ring of the last kFlightRecords: written by
// the rank alone, read by anybody at any time. `number` is stored last, 0 first.
//
//   0  number     how many collectives the rank has begun, this one included
//   8  operation  12  group  16  leader: the lowest world rank of the group
//  24  sequence   32  bytes  40  start_ticks   48  end_ticks, 0 while it is under way
//  64
struct alignas(kCacheLine) Arena::Flight {
  std::atomic<uint64_t> number;
  std::atomic<Operation> operation;
  std::atomic<uint32_t> group;
  std::atomic<int32_t> leader;
  std::atomic<uint64_t> sequence, bytes, start_ticks, end_ticks;
};
static_assert(offsetof(Arena::Flight, sequence) == 24);
static_assert(offsetof(Arena::Flight, end_ticks) == 48);
static_assert(sizeof(Arena::Flight) == 64);

inline constexpr size_t kCrashFrames = 48;
inline constexpr size_t kCrashModules = 24;

// How a rank crashed, written by its signal handler, and where its code lies, written at its start.
//
//    0  signal      0 none; stored last      4  claimed  1 once a thread writes here
//    8  num_frames                          16  fault_address
//   24  frames      innermost first
//  408  modules     unused ones are all zero
// 3480
struct alignas(kCacheLine) Arena::Crash {
  struct Module {
    uint64_t begin, end;  // addresses
    uint64_t bias;        // less this: as its symbols count
    char path[104];
  };
  std::atomic<uint32_t> signal, claimed, num_frames;
  std::atomic<uint64_t> fault_address;
  std::atomic<uint64_t> frames[kCrashFrames];
  Module modules[kCrashModules];
};
static_assert(offsetof(Arena::Crash, fault_address) == 16);
static_assert(offsetof(Arena::Crash, frames) == 24);
static_assert(offsetof(Arena::Crash, modules) == 408);
static_assert(sizeof(Arena::Crash) == 3520);

// The cheapest clock of the machine that all ranks share: 10 ns where CLOCK_MONOTONIC takes 22.
uint64_t now_ticks();
int64_t now_ns();  // CLOCK_MONOTONIC

// From the one clock to the other, by the moment that the arena has on both and the present one.
class TickClock {
 public:
  explicit TickClock(const Arena& arena);
  int64_t to_ns(uint64_t ticks) const;

 private:
  uint64_t start_ticks_;
  int64_t start_ns_;
  double ns_per_tick_ = 0;
};

// Values of sleeping_for: awake, woken by any rank, else 1 + the only rank that wakes it.
inline constexpr uint32_t kAwake = 0;
inline constexpr uint32_t kSleepingForAny = 0xffffffff;

inline constexpr uint64_t kStartedBarrier = 1;

// The header of one chunk of a message; both sides compute it, the reader compares.
//
//   0  operation    8  sequence     24  offset of this chunk in its message
//   4  group       16  total_bytes  32  chunk_bytes
//  40  phase: 0, or 1 for the second message of an all_reduce
//  44  element: the DataType a reduction adds, 0 for the rest
//  46  place: where the payload lies: 0 the slot of this header, 1 + i slot i of the sender's
//      outbox
//  48  counts: dispatch [tokens, results expected], combine [results, 0], a barrier that was
//      started [kStartedBarrier, 0], others [0, 0]
//  64
struct Arena::Slot {
  Operation operation{};
  uint32_t group = 0;
  uint64_t sequence = 0;
  uint64_t total_bytes = 0;
  uint64_t offset = 0;
  uint64_t chunk_bytes = 0;
  uint32_t phase = 0;
  uint16_t element = 0;
  uint16_t place = 0;
  uint64_t counts[2] = {};

  bool operator==(const Slot&) const = default;
};
static_assert(offsetof(Arena::Slot, sequence) == 8);
static_assert(offsetof(Arena::Slot, total_bytes) == 16);
static_assert(offsetof(Arena::Slot, offset) == 24);
static_assert(offsetof(Arena::Slot, chunk_bytes) == 32);
static_assert(offsetof(Arena::Slot, phase) == 40);
static_assert(offsetof(Arena::Slot, element) == 44);
static_assert(offsetof(Arena::Slot, place) == 46);
static_assert(offsetof(Arena::Slot, counts) == 48);
static_assert(sizeof(Arena::Slot) == 64);

// One FIFO from a sender to a receiver. Chunk number n (from 0) lies in slot n % 2; the sender may
// write it once consumed + 2 > n, the receiver may read it once published > n.
//
// A barrier needs no chunk: the sender counts it in `barriers`, after saying which one it is. It
// may come to the next one before the receiver has looked at this, but no further: so two are kept.
//
//   0  published   chunks ever sent         )
//   8  barriers    barriers ever come to    ) written by the sender
//  16  barrier[2]  number n in barrier[n % 2]: 0 sequence, 8 group, 12 owes: 1 if chunks of
//                  earlier collectives are to follow
//  64  consumed    chunks ever given back  ) written by the receiver
//  72  passed      barriers ever left      )
// 128  slots      the headers, written by the sender
// 256
struct alignas(kCacheLine) Arena::Window {
  std::atomic<uint64_t> published;
  std::atomic<uint64_t> barriers;
  struct {
    std::atomic<uint64_t> sequence;
    std::atomic<uint32_t> group;
    std::atomic<uint32_t> owes;
  } barrier[2];
  alignas(kCacheLine) std::atomic<uint64_t> consumed;
  std::atomic<uint64_t> passed;
  alignas(kCacheLine) Slot slots[kSlotsPerWindow];
};
static_assert(offsetof(Arena::Window, barrier) == 16);
static_assert(sizeof(Arena::Window::barrier[0]) == 16);
static_assert(offsetof(Arena::Window, consumed) == 64);
static_assert(offsetof(Arena::Window, slots) == 128);
static_assert(sizeof(Arena::Window) == 256);

// Wakes the process that sleeps on `word`, of which there is at most one; the word is shared
// between processes. For the caller to change the word before.
void futex_wake(std::atomic<uint32_t>& word);
// Sleeps until woken, for at most `ns`; returns at once if the word is not `expected`. May return
// early for no reason.
void futex_wait(std::atomic<uint32_t>& word, uint32_t expected, int64_t ns);

}  // namespace troupe::comm
