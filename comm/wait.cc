// How a rank waits for others, and what it says when they do not come.
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/comm_thread.h"
#include "comm/heartbeat.h"
#include "comm/process_group.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
// Looks without a pause first, as the data of a rank that is not late is a cache miss away; a pause
// is 25 ns.
constexpr int kLooks = 100;
// Then a spin, which is for ranks that come almost together. A longer one takes the core from those
// who have something to do: where each rank has a core the launcher has none, and with 60 us and
// more a token of a small model on two of them took three times as long.
constexpr int64_t kSpinNs = 10'000;
constexpr int kPausesPerClock = 32;
// Then yields, until so long after the begin. Where ranks share cores others run meanwhile, so this
// is about their turns: long enough for a turn of each of four others in a short collective, where
// one that slept would be woken across cores (19 us) again and again.
constexpr int64_t kYieldNs = 50'000;

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

// The operations of collectives stand in both lists in one order.
TraceOp traced(Operation operation) {
  return static_cast<TraceOp>(static_cast<int>(TraceOp::kBarrier) + static_cast<int>(operation) -
                              static_cast<int>(Operation::kBarrier));
}
static_assert(static_cast<int>(TraceOp::kCombine) - static_cast<int>(TraceOp::kBarrier) ==
              static_cast<int>(Operation::kCombine) - static_cast<int>(Operation::kBarrier));

}  // namespace

// Not the _PRIVATE operations: the word lies in memory shared between processes.
void futex_wake(std::atomic<uint32_t>& word) { futex(word, FUTEX_WAKE, INT_MAX, nullptr); }

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected, int64_t ns) {
  const timespec timeout{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  futex(word, FUTEX_WAIT, expected, &timeout);
}

bool has_core_for_each_thread(int world_size, int threads_per_rank) {
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return false;
  return CPU_COUNT(&allowed) >= int64_t{world_size} * threads_per_rank;
}

Communicator::Communicator(Arena& arena, int world_rank, std::chrono::milliseconds timeout)
    : Communicator(arena, world_rank, timeout,
                   {.spin = has_core_for_each_thread(arena.shape().world_size, 1)}) {}

Communicator::Communicator(Arena& arena, int world_rank, std::chrono::milliseconds timeout,
                           const CommOptions& options)
    : arena_(arena),
      world_rank_(world_rank),
      timeout_(timeout),
      spin_(options.spin),
      flights_(arena, world_rank),
      transfers_(std::make_unique<TransferQueue>(*this)) {
  if (arena.shape().trace.on()) trace_.emplace(arena, world_rank);
  if (options.mode == CommMode::kThread) comm_thread_ = std::make_unique<CommThread>();
}

Communicator::~Communicator() {
  if (comm_thread_) abandon_comm_thread();
}

CommThread* Communicator::comm_thread() const {
  return comm_thread_ && !comm_thread_->is_current() ? comm_thread_.get() : nullptr;
}

Trace* Communicator::trace() {
  if (!trace_ || (comm_thread_ && comm_thread_->is_current())) return nullptr;
  return &*trace_;
}

void Communicator::wait_for_job(uint32_t job, Operation operation) {
  const TraceSpan collective(trace(), traced(operation)), waiting(trace(), TraceOp::kWait);
  comm_thread_->wait(job);
}

void Communicator::wait_for_comm_thread() const {
  if (CommThread* thread = comm_thread()) thread->wait_for_all();
}

// It looks at the flag before it sleeps, so the doorbell alone need be rung.
void Communicator::abandon_comm_thread() noexcept {
  abandoned_.store(true);
  std::atomic<uint32_t>& doorbell = arena_.rank_state(world_rank_).doorbell;
  doorbell.fetch_add(1);
  futex_wake(doorbell);
  comm_thread_->finish_all();
}

void Communicator::enter_step(Stage stage, uint64_t step) {
  Activity& activity = arena_.activity(world_rank_);
  activity.stage.store(stage, kRelaxed);
  activity.step.store(step, kRelaxed);
  activity.layer.store(-1, kRelaxed);
  activity.beat_ns.store(now_ns(), kRelaxed);
  if (trace_) {
    trace_->set_step(step);
    trace_->set_layer(-1);
  }
  arrive();
}

void Communicator::enter_layer(int32_t layer) {
  Activity& activity = arena_.activity(world_rank_);
  activity.layer.store(layer, kRelaxed);
  activity.beat_ns.store(now_ns(), kRelaxed);
  if (trace_) trace_->set_layer(layer);
  arrive();
}

void Communicator::inject(std::vector<Fault> faults) {
  if (faults.empty()) return;
  faults_ = std::make_unique<FaultInjector>(std::move(faults));
  arrive();
}

void Communicator::arrive() const {
  if (faults_ == nullptr) [[likely]]
    return;
  if (const size_t struck = faults_->arrive(arena_.snapshot(world_rank_)); struck > 0)
    arena_.count_faults(struck);
}

void Communicator::add_group(uint32_t id, std::span<const int> ranks) {
  groups_.push_back({.id = id,
                     .ranks = {ranks.begin(), ranks.end()},
                     .leader = *std::min_element(ranks.begin(), ranks.end())});
}

const Communicator::Group* Communicator::find_group(uint32_t id) const {
  const auto found = std::find_if(groups_.begin(), groups_.end(),
                                  [&](const Group& group) { return group.id == id; });
  return found == groups_.end() ? nullptr : &*found;
}

void Communicator::show_collective(Operation operation, uint32_t group, uint64_t sequence) const {
  Activity& activity = arena_.activity(world_rank_);
  activity.group.store(group, kRelaxed);
  activity.sequence.store(sequence, kRelaxed);
  activity.operation.store(operation, kRelaxed);
}

void Communicator::enter_collective(Operation operation, uint32_t group, uint64_t sequence,
                                    uint64_t bytes) {
  if (trace() != nullptr) collective_.emplace(trace(), traced(operation), 0, bytes);
  show_collective(operation, group, sequence);
  const Group* known = find_group(group);
  flights_.begin(operation, group, known == nullptr ? -1 : known->leader, sequence, bytes);
  arrive();
}

void Communicator::leave_collective() {
  flights_.end();
  pause_collective();
}

void Communicator::pause_collective() {
  arena_.activity(world_rank_).operation.store(Operation::kNone, kRelaxed);
  collective_.reset();
}

void Communicator::resume_collective(Operation operation, uint32_t group, uint64_t sequence) {
  if (trace() != nullptr) collective_.emplace(trace(), traced(operation));
  show_collective(operation, group, sequence);
  flights_.resume(group, sequence);
}

// A wait that the first looks end is too short for a clock: wait_ns() leaves it out.
void Communicator::wait_until(Condition ready, int for_rank, WakeOn wake_on) {
  for (int look = 0; look < (spin_ ? kLooks : 1); ++look)
    if (ready()) return;
  const TraceSpan span(trace(), TraceOp::kWait, 0, 0, for_rank);
  const int64_t start = now_ns();
  Activity& activity = arena_.activity(world_rank_);
  activity.waiting_for.store(for_rank, kRelaxed);
  activity.beat_ns.store(start, kRelaxed);
  if (!ready_soon(ready, start)) sleep_until(ready, for_rank, wake_on, start);
  activity.waiting_for.store(-1, kRelaxed);
  wait_ns_ += now_ns() - start;
}

bool Communicator::ready_soon(Condition ready, int64_t start) const {
  const int64_t spin_until = start + (spin_ ? kSpinNs : 0), until = start + kYieldNs;
  for (int64_t now = start; now < until; now = now_ns()) {
    if (now < spin_until) {
      for (int i = 0; i < kPausesPerClock; ++i) {
        pause_core();
        if (ready()) return true;
      }
    } else {
      ::sched_yield();
      if (ready()) return true;
    }
  }
  return false;
}

// No ring is lost: the sleeper stores sleeping_for and then looks for data; the publisher stores
// data and then looks at sleeping_for; a sequentially consistent fence lies between the two on both
// sides, so one of them sees the other. A ring between the load of the doorbell and the futex call
// makes that call return.
void Communicator::sleep_until(Condition ready, int for_rank, WakeOn wake_on, int64_t start) {
  Arena::RankState& me = arena_.rank_state(world_rank_);
  const uint32_t sleeping_for =
      wake_on == WakeOn::kAnyRank ? kSleepingForAny : static_cast<uint32_t>(for_rank) + 1;
  const int64_t deadline = start + std::chrono::nanoseconds(timeout_).count();
  const int64_t interval = heartbeat_interval_ns(timeout_);
  for (;;) {
    const uint32_t doorbell = me.doorbell.load();
    me.sleeping_for.store(sleeping_for);
    publication_fence();
    const bool done = ready();
    if (!done) throw_if_world_ended();
    const int64_t now = now_ns(), left = deadline - now;
    me.activity.beat_ns.store(now, kRelaxed);
    if (!done && left > 0) futex_wait(me.doorbell, doorbell, std::min(left, interval));
    me.sleeping_for.store(kAwake);
    if (done) return;
    if (left <= 0) {
      const Blame blame = find_blame(arena_, world_rank_, for_rank, timeout_);
      fail(timeout_text(for_rank, blame), blame.rank >= 0 ? blame.rank : for_rank);
    }
  }
}

std::string Communicator::timeout_text(int for_rank, const Blame& blame) const {
  std::string text = fmt::format("waited {} ms for rank {}, which is in: {}.", timeout_.count(),
                                 for_rank, describe(arena_.snapshot(for_rank)));
  if (blame.kind == Blame::Kind::kEndOfChain && blame.rank != for_rank)
    text += fmt::format(" That chain of waits leads to rank {}, which is in: {}.", blame.rank,
                        describe(arena_.snapshot(blame.rank)));
  if (blame.kind == Blame::Kind::kOutsideCircle)
    text += fmt::format(" The waits are a circle of ranks that run; rank {} is in: {}.", blame.rank,
                        describe(arena_.snapshot(blame.rank)));
  if (blame.rank >= 0 && blame.silent)
    text +=
        fmt::format(" Rank {} has given no sign of life for {} ms; it is stopped, or cannot run.",
                    blame.rank, silence_ns(arena_, blame.rank) / 1'000'000);
  return text + " On a loaded machine raise runtime_config.comm_timeout_s.";
}

void Communicator::throw_if_world_ended() const {
  if (abandoned_.load()) throw RankError(error_text("what was started is no longer wanted"));
  const int failed = arena_.first_failed_rank();
  if (failed >= 0)
    throw RankError(error_text(fmt::format("ended, because rank {} failed: {}", failed,
                                           arena_.failure(failed))) +
                    arrivals());
  if (arena_.aborted()) throw RankError(error_text("the launch is ending.") + arrivals());
}

void Communicator::ring(int world_rank) const {
  const uint32_t sleeping_for = arena_.rank_state(world_rank).sleeping_for.load(kRelaxed);
  if (sleeping_for == kSleepingForAny || sleeping_for == static_cast<uint32_t>(world_rank_) + 1)
    wake(world_rank, sleeping_for);
}

void Communicator::ring_if_for_any(int world_rank) const {
  if (arena_.rank_state(world_rank).sleeping_for.load(kRelaxed) == kSleepingForAny)
    wake(world_rank, kSleepingForAny);
}

// Whoever clears sleeping_for wakes: the others spare themselves the system call.
void Communicator::wake(int world_rank, uint32_t sleeping_for) const {
  Arena::RankState& peer = arena_.rank_state(world_rank);
  if (!peer.sleeping_for.compare_exchange_strong(sleeping_for, kAwake)) return;
  peer.doorbell.fetch_add(1);
  futex_wake(peer.doorbell);
}

std::string Communicator::error_text(const std::string& what) const {
  return error_prefix(world_rank_, arena_.snapshot(world_rank_)) + what;
}

void Communicator::fail(const std::string& what, int blamed) const {
  const std::string text = error_text(what);
  arena_.publish_failure(world_rank_, text, blamed);
  throw RankError(text + arrivals());
}

std::string Communicator::arrivals() const {
  const ActivitySnapshot here = arena_.snapshot(world_rank_);
  const Group* group = find_group(here.group);
  if (here.operation == Operation::kNone || group == nullptr) return "";
  return arrivals_text(arena_,
                       {.operation = here.operation,
                        .group = here.group,
                        .leader = group->leader,
                        .sequence = here.sequence},
                       group->ranks);
}

}  // namespace troupe::comm
