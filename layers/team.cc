// The gate is one word:
//
//   bits 0-11   workers inside the loop
//   bit 12      open: the loop may be entered
//   bits 13-31  the loop's number, which wraps
//
// The caller opens it, works along until no part is left, closes it, and waits until nobody is
// inside. A worker enters by adding one to an open gate, so it can never be inside a loop that has
// ended. When the number has wrapped while a worker slept, it may take a new loop for the one it
// has served, and sits it out.
#include "layers/team.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace troupe::layers {
namespace {

constexpr uint32_t kInside = (uint32_t{1} << 12) - 1;
constexpr uint32_t kOpen = uint32_t{1} << 12;
constexpr uint32_t kNumber = ~(kInside | kOpen);
constexpr uint32_t kNextNumber = kOpen << 1;
constexpr int kMaxThreads = 1024;

// Who a wake-up is for: one futex word serves both.
constexpr uint32_t kForWorkers = 1, kForCaller = 2;

void pin(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  errno = ::pthread_setaffinity_np(thread, sizeof(set), &set);
  if (errno != 0) throw std::runtime_error(errno_text("pthread_setaffinity_np"));
}

thread_local Team* current = nullptr;

}  // namespace

Team* current_team() { return current; }

UseTeam::UseTeam(Team& team) : previous_(std::exchange(current, &team)) {}
UseTeam::~UseTeam() { current = previous_; }

Team::Team(const TeamOptions& options)
    : spin_(options.spin), phases_(options.threads, options.spin) {
  TROUPE_CHECK(1 <= options.threads && options.threads <= kMaxThreads, "{} threads",
               options.threads);
  TROUPE_CHECK(options.cpus.empty() || std::ssize(options.cpus) == options.threads,
               "{} cpus for {} threads", options.cpus.size(), options.threads);
  try {
    if (!options.cpus.empty()) pin(::pthread_self(), options.cpus[0]);
    for (int i = 1; i < options.threads; ++i) {
      workers_.emplace_back([this, i] { worker_loop(i); });
      const pthread_t thread = workers_.back().native_handle();
      ::pthread_setname_np(thread, fmt::format("compute {}", i).c_str());
      if (!options.cpus.empty()) pin(thread, options.cpus[i]);
    }
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stopping_.store(true);
  gate_.fetch_add(kNextNumber);  // or one that is about to sleep would
  wake(gate_, kForWorkers);
  for (std::thread& worker : workers_) worker.join();
}

void Team::run(const Loop& loop) {
  // Loops inside a piece are plain calls.
  struct Outside {
    Team* team = std::exchange(current, nullptr);
    ~Outside() { current = team; }
  } outside;
  if (phases_.is_open()) return phases_.run(loop);
  fork(&loop);
  work();
  join();
  error_.rethrow();
}

void Team::run_region(void (*body)(const void*), const void* context) {
  if (phases_.is_open()) return body(context);
  phases_.open();
  fork(nullptr);
  const auto end = [this] {
    phases_.close();
    join();
  };
  try {
    body(context);
  } catch (...) {
    end();
    throw;
  }
  end();
}

void Team::fork(const Loop* loop) {
  loop_ = loop;
  next_.store(0, std::memory_order_relaxed);
  gate_.store(((gate_.load(std::memory_order_relaxed) & kNumber) + kNextNumber) | kOpen);
  // Nobody is missed: a worker counts itself among the sleepers and then looks at the gate.
  if (sleepers_.load() > 0) wake(gate_, kForWorkers);
}

void Team::join() {
  gate_.fetch_and(~kOpen);
  wait_for_stragglers();
}

void Team::wait_for_stragglers() {
  const auto all_left = [this] { return (gate_.load() & kInside) == 0; };
  if (wait_awake(spin_, all_left)) return;
  caller_sleeps_.store(1);
  for (uint32_t seen = gate_.load(); (seen & kInside) != 0; seen = gate_.load())
    sleep_while(gate_, seen, kForCaller);
  caller_sleeps_.store(0);
}

// The gate of a loop other than `served`, open; or any, at the end.
uint32_t Team::wait_for_loop(uint32_t served) {
  uint32_t seen = 0;
  const auto is_new = [&] {
    seen = gate_.load();
    return ((seen & kOpen) != 0 && (seen & kNumber) != served) || stopping_.load();
  };
  if (wait_awake(spin_, is_new)) return seen;
  sleepers_.fetch_add(1);
  while (!is_new()) sleep_while(gate_, seen, kForWorkers);
  sleepers_.fetch_sub(1);
  return seen;
}

void Team::worker_loop(int thread) {
  for (uint32_t served = 0;;) {
    uint32_t gate = wait_for_loop(served);
    if (stopping_.load()) return;
    if (!gate_.compare_exchange_strong(gate, gate + 1)) continue;
    served = gate & kNumber;
    if (loop_ != nullptr)
      work();
    else
      phases_.serve(thread);
    // The last to leave a closed gate wakes a caller that did not want to spin any longer.
    const uint32_t before = gate_.fetch_sub(1);
    if ((before & (kOpen | kInside)) == 1 && caller_sleeps_.load() != 0) wake(gate_, kForCaller);
  }
}

void Team::work() noexcept {
  int64_t begin = 0, end = 0;
  try {
    while (take(begin, end)) loop_->piece(loop_->body, begin, end);
  } catch (...) {
    next_.store(loop_->count, std::memory_order_relaxed);
    error_.keep();
  }
}

// Half of a fair share of what is left, so that pieces are few at first and end together.
bool Team::take(int64_t& begin, int64_t& end) {
  const int64_t shares = 2 * int64_t{size()};
  begin = next_.load(std::memory_order_relaxed);
  do {
    if (begin >= loop_->count) return false;
    const int64_t grains = (loop_->count - begin) / shares / loop_->grain;
    end = std::min(loop_->count, begin + std::max<int64_t>(grains, 1) * loop_->grain);
  } while (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
  return true;
}

}  // namespace troupe::layers
