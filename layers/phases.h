// layers/phases.h: loop after loop of one parallel region, shared by a fixed schedule.
//
// A thread of the region always takes the same share of the same loop. The caller hands a loop to
// all others with one write, and collects them with one read of each; nobody enters or leaves
// anything between two loops. A share that its thread has not begun when the caller has finished
// its own is the caller's: nobody waits for a thread that has done nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "layers/team_loop.h"

namespace troupe::layers {

class Phases {
 public:
  Phases(int threads, bool spin);

  // The caller's, thread 0: open(), then any number of run(), then close().
  void open() { open_.store(true); }
  // As Team::run. An exception of a piece ends its share; the first one is thrown here.
  void run(const Loop& loop);
  void close();
  bool is_open() const { return open_.load(std::memory_order_relaxed); }

  // Thread `thread` takes its shares until the region is closed. It may come late.
  void serve(int thread);

 private:
  void publish(const Loop& loop);
  void collect(int thread);
  void take_share(int thread) noexcept;
  bool wait_for_phase(uint32_t served, uint32_t& number);

  // Of a thread's share in phase n; in between it is that of phase n - 1, done.
  static uint32_t taken(uint32_t number) { return 2 * number; }
  static uint32_t done(uint32_t number) { return 2 * number + 1; }

  // One cache line: who sees the new number has the loop with it.
  struct alignas(64) Phase {
    std::atomic<uint32_t> number{0};  // wraps
    Loop loop;
  };
  struct alignas(64) Share {
    std::atomic<uint32_t> state{1};  // done(0)
  };

  const bool spin_;
  Phase phase_;
  std::vector<Share> shares_;  // [threads]; the caller's is not used
  FirstError error_;
  alignas(64) std::atomic<uint32_t> sleepers_{0};  // threads that sleep, or are about to
  std::atomic<uint32_t> caller_sleeps_{0};
  std::atomic<bool> open_{false};
};

}  // namespace troupe::layers
