#include "comm/arena.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/arena_layout.h"

namespace troupe::comm {
namespace {

constexpr size_t kMinSlotBytes = 4096;
constexpr size_t kPageBytes = 4096;
constexpr size_t kMiB = size_t{1} << 20;

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

size_t flights_offset(const ArenaShape& shape) {
  return sizeof(Arena::LaunchState) + shape.world_size * sizeof(Arena::RankState);
}

size_t crashes_offset(const ArenaShape& shape) {
  return flights_offset(shape) + shape.world_size * kFlightRecords * sizeof(Arena::Flight);
}

size_t windows_offset(const ArenaShape& shape) {
  return crashes_offset(shape) + shape.world_size * sizeof(Arena::Crash);
}

size_t num_windows(const ArenaShape& shape) {
  return static_cast<size_t>(shape.world_size) * shape.world_size;
}

size_t payload_offset(const ArenaShape& shape) {
  return round_up(windows_offset(shape) + num_windows(shape) * sizeof(Arena::Window), kPageBytes);
}

size_t window_bytes_of_all(const ArenaShape& shape) {
  return num_windows(shape) * shape.window_bytes();
}

size_t traces_offset(const ArenaShape& shape) {
  return payload_offset(shape) + window_bytes_of_all(shape);
}

void check_shape(const ArenaShape& shape) {
  TROUPE_CHECK(shape.world_size >= 1 && shape.world_size <= (1 << 16), "world_size {}",
               shape.world_size);
  const size_t needed = kMinSlotBytes * kSlotsPerWindow * shape.world_size;
  if (shape.comm_buffer_bytes < needed)
    throw_user_error("runtime_config.comm_buffer_mb: {} MiB are too few for {} ranks; write {}",
                     shape.comm_buffer_bytes / kMiB, shape.world_size, (needed + kMiB - 1) / kMiB);
  size_t all_windows = 0;
  if (__builtin_mul_overflow(shape.comm_buffer_bytes, size_t(shape.world_size), &all_windows) ||
      all_windows > (size_t{1} << 46))
    throw_user_error(
        "runtime_config.comm_buffer_mb: {} MiB for each of {} ranks are more than a "
        "process can map; the usual value is 16",
        shape.comm_buffer_bytes / kMiB, shape.world_size);
}

}  // namespace

size_t ArenaShape::slot_bytes() const {
  return comm_buffer_bytes / world_size / kSlotsPerWindow / kCacheLine * kCacheLine;
}

size_t ArenaShape::window_bytes() const { return slot_bytes() * kSlotsPerWindow; }

size_t ArenaShape::bytes() const {
  return traces_offset(*this) + (world_size + 1) * trace.ring_bytes(world_size);
}

Arena::Arena(Fd fd, const ArenaShape& shape, Mapping::Access access)
    : fd_(std::move(fd)), shape_(shape), mapping_(fd_.get(), shape.bytes(), access) {
  if (shape.huge_windows)
    ::madvise(mapping_.data() + payload_offset(shape), window_bytes_of_all(shape), MADV_HUGEPAGE);
}

Arena Arena::create(const ArenaShape& shape) {
  check_shape(shape);
  Arena arena(create_shared_memory("troupe-arena", shape.bytes()), shape,
              Mapping::Access::kReadWrite);
  arena.launch_state().world_size = shape.world_size;
  arena.launch_state().slot_bytes = shape.slot_bytes();
  arena.launch_state().start_ticks = now_ticks();
  arena.launch_state().start_ns = now_ns();
  for (int rank = 0; rank < shape.world_size; ++rank) {
    arena.activity(rank).layer = -1;
    arena.activity(rank).waiting_for = -1;
    arena.activity(rank).beat_ns = arena.launch_state().start_ns;
  }
  return arena;
}

Arena Arena::attach(Fd fd, const ArenaShape& shape) {
  return open(std::move(fd), shape, Mapping::Access::kReadWrite);
}

Arena Arena::view(Fd fd, const ArenaShape& shape) {
  return open(std::move(fd), shape, Mapping::Access::kReadOnly);
}

Arena Arena::open(Fd fd, const ArenaShape& shape, Mapping::Access access) {
  check_shape(shape);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_rank_error("{}", errno_text("fstat of the arena"));
  if (static_cast<size_t>(status.st_size) != shape.bytes())
    throw_rank_error("the arena has {} bytes, {} ranks with {} MiB of windows need {}",
                     status.st_size, shape.world_size, shape.comm_buffer_bytes / kMiB,
                     shape.bytes());
  Arena arena(std::move(fd), shape, access);
  const LaunchState& state = arena.launch_state();
  if (state.world_size != shape.world_size || state.slot_bytes != shape.slot_bytes())
    throw_rank_error("the arena was made for {} ranks and slots of {} bytes, not for {} and {}",
                     state.world_size, state.slot_bytes, shape.world_size, shape.slot_bytes());
  return arena;
}

// A policy of the shared memory itself, so it holds for the senders too. Pages that a neighbour's
// row shares are nobody's.
void Arena::place_windows(int rank) const {
  unsigned cpu = 0, node = 0;
  if (::getcpu(&cpu, &node) != 0) return;
  const uintptr_t row = reinterpret_cast<uintptr_t>(payload(rank, 0, 0));
  const uintptr_t begin = round_up(row, kPageBytes);
  const uintptr_t end = (row + shape_.world_size * shape_.window_bytes()) / kPageBytes * kPageBytes;
  constexpr unsigned kBits = 8 * sizeof(unsigned long);
  unsigned long nodes[16] = {};
  if (begin >= end || node >= std::size(nodes) * kBits) return;
  nodes[node / kBits] = 1ul << (node % kBits);
  ::syscall(SYS_mbind, begin, end - begin, MPOL_PREFERRED, nodes, std::size(nodes) * kBits, 0);
}

bool Arena::aborted() const { return launch_state().aborted.load() != 0; }

void Arena::abort() {
  launch_state().aborted.store(1);
  wake_all();
}

// Rings without looking who sleeps for whom: this concerns everybody.
void Arena::wake_all() const {
  for (int rank = 0; rank < shape_.world_size; ++rank) {
    rank_state(rank).doorbell.fetch_add(1);
    futex_wake(rank_state(rank).doorbell);
  }
}

Activity& Arena::activity(int rank) const { return rank_state(rank).activity; }

void Arena::publish_failure(int rank, const std::string& text, int blamed) const {
  RankState& state = rank_state(rank);
  if (text.empty() || state.failure_length.load() != 0) return;
  const size_t length = std::min(text.size(), kFailureTextBytes);
  std::memcpy(state.failure_text, text.data(), length);
  state.blamed.store(blamed + 1);
  state.failure_length.store(static_cast<uint32_t>(length));
  uint32_t nobody = 0;
  launch_state().first_failed.compare_exchange_strong(nobody, static_cast<uint32_t>(rank) + 1);
  wake_all();
}

std::string Arena::failure(int rank) const {
  const RankState& state = rank_state(rank);
  const size_t length = state.failure_length.load();
  return std::string(state.failure_text, std::min(length, kFailureTextBytes));
}

int Arena::blamed(int rank) const {
  const int blamed = rank_state(rank).blamed.load() - 1;
  return blamed < shape_.world_size ? blamed : -1;
}

void Arena::publish_figures(const LaunchFigures& figures) const {
  auto& shown = launch_state().figures;
  constexpr auto kRelaxed = std::memory_order_relaxed;
  shown.prompt_tokens.store(figures.prompt_tokens, kRelaxed);
  shown.new_tokens.store(figures.new_tokens, kRelaxed);
  shown.running.store(figures.running, kRelaxed);
  shown.waiting.store(figures.waiting, kRelaxed);
  shown.kv_blocks_in_use.store(figures.kv_blocks_in_use, kRelaxed);
  shown.kv_blocks.store(figures.kv_blocks, kRelaxed);
}

LaunchFigures Arena::figures() const {
  const auto& shown = launch_state().figures;
  constexpr auto kRelaxed = std::memory_order_relaxed;
  return {.prompt_tokens = shown.prompt_tokens.load(kRelaxed),
          .new_tokens = shown.new_tokens.load(kRelaxed),
          .running = shown.running.load(kRelaxed),
          .waiting = shown.waiting.load(kRelaxed),
          .kv_blocks_in_use = shown.kv_blocks_in_use.load(kRelaxed),
          .kv_blocks = shown.kv_blocks.load(kRelaxed)};
}

void Arena::count_faults(size_t struck) const {
  launch_state().faults_struck.fetch_add(static_cast<uint32_t>(struck));
}

size_t Arena::faults_struck() const { return launch_state().faults_struck.load(); }

int Arena::first_failed_rank() const {
  const uint32_t failed = launch_state().first_failed.load();
  return failed <= static_cast<uint32_t>(shape_.world_size) ? static_cast<int>(failed) - 1 : -1;
}

Arena::LaunchState& Arena::launch_state() const {
  return *reinterpret_cast<LaunchState*>(mapping_.data());
}

Arena::RankState& Arena::rank_state(int rank) const {
  TROUPE_CHECK(rank >= 0 && rank < shape_.world_size, "rank {} of {}", rank, shape_.world_size);
  return reinterpret_cast<RankState*>(mapping_.data() + sizeof(LaunchState))[rank];
}

Arena::Flight* Arena::flight_ring(int rank) const {
  TROUPE_CHECK(rank >= 0 && rank < shape_.world_size, "rank {} of {}", rank, shape_.world_size);
  return reinterpret_cast<Flight*>(mapping_.data() + flights_offset(shape_)) +
         rank * kFlightRecords;
}

Arena::Crash& Arena::crash(int rank) const {
  TROUPE_CHECK(rank >= 0 && rank < shape_.world_size, "rank {} of {}", rank, shape_.world_size);
  return reinterpret_cast<Crash*>(mapping_.data() + crashes_offset(shape_))[rank];
}

Arena::Window& Arena::window(int receiver, int sender) const {
  TROUPE_CHECK(receiver >= 0 && receiver < shape_.world_size, "receiver {}", receiver);
  TROUPE_CHECK(sender >= 0 && sender < shape_.world_size, "sender {}", sender);
  auto* windows = reinterpret_cast<Window*>(mapping_.data() + windows_offset(shape_));
  return windows[static_cast<size_t>(receiver) * shape_.world_size + sender];
}

std::byte* Arena::payload(int receiver, int sender, int slot) const {
  const size_t window_idx = static_cast<size_t>(receiver) * shape_.world_size + sender;
  const size_t slot_idx = window_idx * kSlotsPerWindow + slot;
  return mapping_.data() + payload_offset(shape_) + slot_idx * shape_.slot_bytes();
}

TraceRing& Arena::trace_ring(int index) const {
  TROUPE_CHECK(shape_.trace.on() && index >= 0 && index <= shape_.world_size, "ring {}", index);
  return *reinterpret_cast<TraceRing*>(mapping_.data() + traces_offset(shape_) +
                                       index * shape_.trace.ring_bytes(shape_.world_size));
}

}  // namespace troupe::comm
