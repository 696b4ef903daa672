// layers/team_loop.h: what the two ways of sharing a loop (layers/team.cc, layers/phases.cc) have
// in common: the loop itself, the error of a piece, and how a thread waits.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <exception>
#include <utility>

namespace troupe::layers {

struct Loop {
  using Piece = void (*)(const void* body, int64_t begin, int64_t end);
  Piece piece = nullptr;
  const void* body = nullptr;
  int64_t count = 0, grain = 1;
};

// The first exception of a loop's pieces, on whichever thread.
class FirstError {
 public:
  void keep() noexcept {
    if (!failed_.exchange(true)) error_ = std::current_exception();
  }
  // Once no piece runs any longer.
  void rethrow() {
    if (!failed_.load(std::memory_order_relaxed)) return;
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
};

inline constexpr uint32_t kAnybody = FUTEX_BITSET_MATCH_ANY;

// Only sleepers whose `who` has a bit in common are woken.
inline void sleep_while(std::atomic<uint32_t>& word, uint32_t value, uint32_t who) {
  static_assert(sizeof(word) == sizeof(uint32_t));
  ::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, value, nullptr, nullptr, who);
}
inline void wake(std::atomic<uint32_t>& word, uint32_t who) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, nullptr, nullptr, who);
}

inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether ready() came true before it was time to sleep.
template <class Ready>
bool wait_awake(bool spin, const Ready& ready) {
  // Between two operations of a step a rank does little alone; the longest pause that should not
  // put the others to sleep is an exchange with other ranks, tens of microseconds.
  constexpr int kSpins = 5000;
  constexpr int kYields = 4;
  for (int i = 0; i < (spin ? kSpins : kYields); ++i) {
    if (ready()) return true;
    if (spin)
      pause_core();
    else
      ::sched_yield();
  }
  return ready();
}

}  // namespace troupe::layers
