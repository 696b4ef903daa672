// How a rank waits for others, and what it says when they do not come.
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>
#include <thread>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/process_group.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr int kSpins = 2000;  // tens of microseconds: two futex calls and two context switches
constexpr int kYields = 4;
// A sleeper looks up this often even if nobody rings, so that a ringer that died between clearing
// sleeping_for and waking costs a pause, not a hang.
constexpr int64_t kSliceNs = 100'000'000;

int64_t now_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value, const timespec* timeout) {
  static_assert(sizeof(word) == sizeof(uint32_t));
  return ::syscall(SYS_futex, &word, operation, value, timeout, nullptr, 0);
}

}  // namespace

// Not the _PRIVATE operations: the word lies in memory shared between processes.
void futex_wake(std::atomic<uint32_t>& word) { futex(word, FUTEX_WAKE, INT_MAX, nullptr); }

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected, int64_t ns) {
  const timespec timeout{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  futex(word, FUTEX_WAIT, expected, &timeout);
}

Communicator::Communicator(Arena& arena, int world_rank, std::chrono::milliseconds timeout)
    : arena_(arena),
      world_rank_(world_rank),
      timeout_(timeout),
      spin_(static_cast<int>(std::thread::hardware_concurrency()) >= arena.shape().world_size),
      transfers_(std::make_unique<TransferQueue>(*this)) {}

Communicator::~Communicator() = default;

void Communicator::enter_step(Stage stage, uint64_t step) const {
  Activity& activity = arena_.activity(world_rank_);
  activity.stage.store(stage, kRelaxed);
  activity.step.store(step, kRelaxed);
  activity.layer.store(-1, kRelaxed);
}

void Communicator::enter_layer(int32_t layer) const {
  arena_.activity(world_rank_).layer.store(layer, kRelaxed);
}

void Communicator::enter_collective(Operation operation, uint32_t group, uint64_t sequence) const {
  Activity& activity = arena_.activity(world_rank_);
  activity.group.store(group, kRelaxed);
  activity.sequence.store(sequence, kRelaxed);
  activity.operation.store(operation, kRelaxed);
  activity.since_ns.store(now_ns(), kRelaxed);
}

void Communicator::leave_collective() const {
  Activity& activity = arena_.activity(world_rank_);
  activity.operation.store(Operation::kNone, kRelaxed);
  activity.since_ns.store(now_ns(), kRelaxed);
}

void Communicator::wait_until(const std::function<bool()>& ready, int for_rank, WakeOn wake_on) {
  if (ready()) return;
  const int64_t start = now_ns();
  Activity& activity = arena_.activity(world_rank_);
  activity.waiting_for.store(for_rank, kRelaxed);
  bool done = false;
  for (int i = 0; !done && i < (spin_ ? kSpins : kYields); ++i) {
    if (spin_)
      pause_core();
    else
      ::sched_yield();
    done = ready();
  }
  if (!done) sleep_until(ready, for_rank, wake_on, start);
  activity.waiting_for.store(-1, kRelaxed);
  wait_ns_ += now_ns() - start;
}

// No ring is lost: the sleeper stores sleeping_for and then looks for data; the publisher stores
// data and then looks at sleeping_for; all four are sequentially consistent, so one of the two sees
// the other. A ring between the load of the doorbell and the futex call makes that call return.
void Communicator::sleep_until(const std::function<bool()>& ready, int for_rank, WakeOn wake_on,
                               int64_t start) {
  Arena::RankState& me = arena_.rank_state(world_rank_);
  const uint32_t sleeping_for =
      wake_on == WakeOn::kAnyRank ? kSleepingForAny : static_cast<uint32_t>(for_rank) + 1;
  const int64_t deadline = start + std::chrono::nanoseconds(timeout_).count();
  for (;;) {
    const uint32_t doorbell = me.doorbell.load();
    me.sleeping_for.store(sleeping_for);
    const bool done = ready();
    if (!done) throw_if_world_ended();
    const int64_t left = deadline - now_ns();
    if (!done && left > 0) futex_wait(me.doorbell, doorbell, std::min(left, kSliceNs));
    me.sleeping_for.store(kAwake);
    if (done) return;
    if (left <= 0) fail(timeout_text(for_rank));
  }
}

// A rank that waits itself is not to blame: names the one at the end of the chain too.
std::string Communicator::timeout_text(int for_rank) const {
  std::string text = fmt::format("waited {} ms for rank {}, which is in: {}.", timeout_.count(),
                                 for_rank, describe(arena_.snapshot(for_rank)));
  int last = for_rank;
  for (int hops = 0; hops < world_size(); ++hops) {
    const int next = arena_.snapshot(last).waiting_for;
    if (next < 0 || next >= world_size() || next == world_rank_) break;
    last = next;
  }
  if (last != for_rank)
    text += fmt::format(" That chain of waits leads to rank {}, which is in: {}.", last,
                        describe(arena_.snapshot(last)));
  return text + " On a loaded machine raise runtime_config.comm_timeout_s.";
}

void Communicator::throw_if_world_ended() const {
  const int failed = arena_.first_failed_rank();
  if (failed >= 0)
    throw RankError(error_text(
        fmt::format("ended, because rank {} failed: {}", failed, arena_.failure(failed))));
  if (arena_.aborted()) throw RankError(error_text("the launch is ending"));
}

// Whoever clears sleeping_for wakes: the others spare themselves the system call.
void Communicator::ring(int world_rank) const {
  Arena::RankState& peer = arena_.rank_state(world_rank);
  uint32_t sleeping_for = peer.sleeping_for.load();
  const bool meant =
      sleeping_for == kSleepingForAny || sleeping_for == static_cast<uint32_t>(world_rank_) + 1;
  if (!meant || !peer.sleeping_for.compare_exchange_strong(sleeping_for, kAwake)) return;
  peer.doorbell.fetch_add(1);
  futex_wake(peer.doorbell);
}

std::string Communicator::error_text(const std::string& what) const {
  const ActivitySnapshot here = arena_.snapshot(world_rank_);
  std::string text = fmt::format("rank {}: ", world_rank_);
  if (here.operation != Operation::kNone)
    text += describe_call(here.operation, here.group, here.sequence) + ", ";
  return text + describe_place(here) + ": " + what;
}

void Communicator::fail(const std::string& what) const {
  const std::string text = error_text(what);
  arena_.publish_failure(world_rank_, text);
  throw RankError(text);
}

}  // namespace troupe::comm
