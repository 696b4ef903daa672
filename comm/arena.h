// comm/arena.h: the shared memory of one launch: what every rank says of itself, and the windows
// that carry tensors between ranks.
//
// One anonymous memfd, made by the launcher, inherited by every rank, mapped at any address:
//
//   LaunchState                      one cache line: abort flag, first failed rank, shape
//   RankState[world]                 one line group per rank: doorbell, published activity, failure
//   Flight[world][kFlightRecords]    flight recorder: the last collectives of each rank
//   Crash[world]                     the stack of a rank that crashed (comm/crash.h)
//   Window[world][world]             window (receiver, sender): counts, two slot headers
//   payload[world][world][2]         the rows of those slots, slot_bytes() each
//   TraceRing[world + 1]             the last events of each rank and of the launcher, if traced
//
// payload (r, r) is the outbox of rank r: what it sends alike to several ranks it writes there
// once, and they read it there; the headers go through their windows as ever.
//
// Exactly one process writes each byte: a rank its own RankState (the doorbell line excepted, which
// anybody may ring), its Flights, its Crash and the window slots (r, me) of every receiver r; the
// receiver writes the `consumed` count of the windows (me, s), and in a dispatch/combine round its
// answers in them (comm/fused_exchange.h). Pages are allocated when touched. The structs are drawn
// in comm/arena_layout.h.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/memory.h"
#include "comm/trace_ring.h"

namespace troupe::comm {

enum class Stage : uint32_t { kStarting, kLoading, kIdle, kPrefill, kDecode, kDraft, kStopping };
const char* stage_name(Stage stage);  // "starting", "loading weights", "idle", "prefill", ...

enum class Operation : uint32_t {
  kNone,
  kBarrier,
  kBroadcast,
  kAllGather,
  kReduceScatter,
  kAllReduce,
  kAllToAll,
  kAllToAllV,
  kDispatch,
  kCombine,
};
const char* operation_name(Operation operation);  // "barrier", "all_gather", "dispatch", ...

// What a rank is doing now: written by that rank alone with relaxed stores, read by anybody for
// reports. No consistency between the fields is promised.
struct Activity {
  std::atomic<Stage> stage;
  std::atomic<uint64_t> step;        // 0 before the first
  std::atomic<int32_t> layer;        // -1 outside layers
  std::atomic<Operation> operation;  // the collective it is in, kNone outside
  std::atomic<uint32_t> group;       // id of that collective's process group
  std::atomic<uint64_t> sequence;    // number of that collective in its group
  std::atomic<int32_t> waiting_for;  // world rank that has not arrived, -1 none
  std::atomic<int64_t> beat_ns;      // CLOCK_MONOTONIC of its last heartbeat (comm/heartbeat.h)
};

// The same as plain values.
struct ActivitySnapshot {
  Stage stage{};
  uint64_t step = 0;
  int32_t layer = -1;
  Operation operation{};
  uint32_t group = 0;
  uint64_t sequence = 0;
  int32_t waiting_for = -1;
  int64_t beat_ns = 0;
};

// One collective of a rank, as its flight recorder has it.
struct FlightRecord {
  Operation operation{};
  uint32_t group = 0;
  int32_t leader = -1;  // lowest world rank of the group: groups of one id differ by it
  uint64_t sequence = 0;
  uint64_t bytes = 0;    // of this rank's larger buffer, 0 where there is none
  int64_t start_ns = 0;  // CLOCK_MONOTONIC
  int64_t end_ns = 0;    // 0 while it is under way
};
inline constexpr size_t kFlightRecords = 256;

inline constexpr size_t kFailureTextBytes = 512;

// What the launcher says of the launch as a whole, for those who look on.
struct LaunchFigures {
  uint64_t prompt_tokens = 0, new_tokens = 0;  // read and made since the start
  int32_t running = 0, waiting = 0;            // requests
  int64_t kv_blocks_in_use = 0, kv_blocks = 0;
};

struct ArenaShape {
  int world_size = 1;
  size_t comm_buffer_bytes = size_t{16}
                             << 20;  // the windows of one receiving rank, all peers together
  TraceShape trace = {};
  // Asks for huge pages for the windows (MADV_HUGEPAGE); the system gives them where
  // /sys/kernel/mm/transparent_hugepage/shmem_enabled is "advise". What is touched of a window is
  // then 2 MiB at least.
  bool huge_windows = false;
  size_t slot_bytes() const;    // payload of one slot: a multiple of 64
  size_t window_bytes() const;  // payloads of all slots of a window
  size_t bytes() const;         // of the whole arena
};

class Arena {
 public:
  // Launcher: makes the memory. Throws UserError when comm_buffer_bytes gives slots under 4 KiB,
  // naming runtime_config.comm_buffer_mb and the value that would do.
  static Arena create(const ArenaShape& shape);
  // Rank: maps the inherited descriptor and checks its size against `shape`.
  static Arena attach(Fd fd, const ArenaShape& shape);
  // A process that only looks on: maps a descriptor that may be read-only. It may call what is
  // const and writes nothing.
  static Arena view(Fd fd, const ArenaShape& shape);

  int fd() const { return fd_.get(); }
  const ArenaShape& shape() const { return shape_; }

  // Rank: from now on pages of the windows in which it receives (its row, comm/arena_layout.h) come
  // from the NUMA node that this thread runs on, whoever touches them first. A wish: a system that
  // refuses it places a page where its sender runs.
  void place_windows(int rank) const;

  // True once the launch is ending: every wait ends with RankError at once.
  bool aborted() const;
  // Sets the flag and wakes every rank that waits.
  void abort();

  Activity& activity(int rank) const;
  ActivitySnapshot snapshot(int rank) const;
  // The last collectives of a rank, at most kFlightRecords, oldest first. Any process may ask at
  // any time; a record that changes meanwhile is left out.
  std::vector<FlightRecord> flights(int rank) const;

  // The first error a rank met, for the launcher to read after the rank's death. Only `rank` itself
  // publishes; longer texts are cut, later ones ignored; every rank that waits is woken and fails
  // too. failure() is empty if there is none.
  // `blamed`: the rank that did not come, -1 where the text says all.
  void publish_failure(int rank, const std::string& text, int blamed = -1) const;
  std::string failure(int rank) const;
  int blamed(int rank) const;                                // by that rank's failure
  void publish_figures(const LaunchFigures& figures) const;  // the launcher alone
  LaunchFigures figures() const;
  // Injected faults (comm/fault.h) that have come to their place, on all ranks together.
  void count_faults(size_t struck) const;
  size_t faults_struck() const;
  // The rank that published a failure before all others, -1 while there is none.
  int first_failed_rank() const;

  // The layout, for the rest of comm.
  struct Slot;
  struct Window;
  struct RankState;
  struct LaunchState;
  struct Flight;
  struct Crash;
  RankState& rank_state(int rank) const;
  Flight* flight_ring(int rank) const;  // [kFlightRecords]
  Crash& crash(int rank) const;
  Window& window(int receiver, int sender) const;
  std::byte* payload(int receiver, int sender, int slot) const;  // slot_bytes(), 64-byte aligned
  TraceRing& trace_ring(int index) const;  // of a rank, world_size: of the launcher; if traced

 private:
  Arena(Fd fd, const ArenaShape& shape, Mapping::Access access);
  static Arena open(Fd fd, const ArenaShape& shape, Mapping::Access access);
  friend class TickClock;
  LaunchState& launch_state() const;
  void wake_all() const;

  Fd fd_;
  ArenaShape shape_;
  Mapping mapping_;
};

// One line for reports: "decode step 14, layer 3, dispatch of group 0 (#421), waiting for rank 2".
std::string describe(const ActivitySnapshot& snapshot);
std::string describe_place(const ActivitySnapshot& snapshot);  // its "decode step 14, layer 3"
std::string describe_call(Operation operation, uint32_t group, uint64_t sequence);
// How errors of a rank there begin: "rank 1: all_gather of group 0 (#7), decode step 14: ".
std::string error_prefix(int rank, const ActivitySnapshot& snapshot);

}  // namespace troupe::comm
