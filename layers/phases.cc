// A phase is one loop. Before it is published every share is done(number - 1); a share becomes
// taken(number), by its thread alone, and then done(number); or done(number) at once, by the caller
// who takes it over. So a thread that finds its share as it was is in the phase it has seen, and
// the caller, who waits for what was taken, cannot have gone on to the next.
#include "layers/phases.h"

#include <algorithm>

namespace troupe::layers {

Phases::Phases(int threads, bool spin) : spin_(spin), shares_(threads) {}

void Phases::run(const Loop& loop) {
  publish(loop);
  take_share(0);
  for (int thread = 1; thread < std::ssize(shares_); ++thread) collect(thread);
  error_.rethrow();
}

// The last phase is empty: it only wakes those who sleep.
void Phases::close() {
  open_.store(false);
  run({});
}

void Phases::publish(const Loop& loop) {
  phase_.loop = loop;
  phase_.number.store(phase_.number.load(std::memory_order_relaxed) + 1);
  // Nobody is missed: a thread counts itself among the sleepers and then looks at the number.
  if (sleepers_.load() > 0) wake(phase_.number, kAnybody);
}

void Phases::take_share(int thread) noexcept {
  const Loop& loop = phase_.loop;
  const int64_t threads = std::ssize(shares_), grains = (loop.count + loop.grain - 1) / loop.grain;
  const int64_t begin = grains * thread / threads * loop.grain;
  const int64_t end = std::min(grains * (thread + 1) / threads * loop.grain, loop.count);
  if (begin >= end) return;
  try {
    loop.piece(loop.body, begin, end);
  } catch (...) {
    error_.keep();
  }
}

void Phases::collect(int thread) {
  const uint32_t number = phase_.number.load(std::memory_order_relaxed);
  std::atomic<uint32_t>& state = shares_[thread].state;
  uint32_t seen = done(number - 1);
  if (state.compare_exchange_strong(seen, done(number))) return take_share(thread);
  const auto is_done = [&] {
    seen = state.load();
    return seen == done(number);
  };
  if (wait_awake(spin_, is_done)) return;
  caller_sleeps_.store(1);
  while (!is_done()) sleep_while(state, seen, kAnybody);
  caller_sleeps_.store(0);
}

void Phases::serve(int thread) {
  std::atomic<uint32_t>& state = shares_[thread].state;
  // It may still be in time for the phase that it finds.
  for (uint32_t served = phase_.number.load() - 1, number = 0; wait_for_phase(served, number);) {
    served = number;
    uint32_t expected = done(number - 1);
    if (!state.compare_exchange_strong(expected, taken(number))) continue;
    take_share(thread);
    state.store(done(number));
    if (caller_sleeps_.load() != 0) wake(state, kAnybody);
  }
}

// The number of a phase other than `served`; false when the region is closed.
bool Phases::wait_for_phase(uint32_t served, uint32_t& number) {
  const auto is_new = [&] {
    number = phase_.number.load();
    return number != served || !is_open();
  };
  if (!wait_awake(spin_, is_new)) {
    sleepers_.fetch_add(1);
    while (!is_new()) sleep_while(phase_.number, number, kAnybody);
    sleepers_.fetch_sub(1);
  }
  return is_open();
}

}  // namespace troupe::layers
