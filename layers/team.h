// layers/team.h: the compute threads of one rank, and how an operation is shared out among them.
//
// A layer says which of its parts do not depend on each other (tiles of a product, rows of a norm,
// heads of attention) and hands them to parallel_for; the threads of the calling thread's team take
// them in pieces until none is left. What a part computes never depends on who computes it, nor on
// where a piece begins: results have the same bits for any number of threads.
//
// The team belongs to the thread that made it current (UseTeam), as with OpenMP: ranks may be
// threads of one process, each with a team of its own, and no layer has to pass one on.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "layers/phases.h"
#include "layers/team_loop.h"

namespace troupe::layers {

struct TeamOptions {
  int threads = 1;  // with the one that calls; 1 to 1024
  // Idle threads spin for tens of microseconds before they sleep: only where every compute thread
  // of the machine has a core of its own.
  bool spin = false;
  // Thread i (0 is the caller) runs on cpus[i] alone; empty: wherever the kernel puts it.
  std::vector<int> cpus = {};
};

// `threads` - 1 sleeping threads, made once. run() neither allocates nor locks. A thread that wakes
// too late for a loop leaves it to the others: nobody waits for a thread that has done nothing.
class Team {
 public:
  // Throws std::runtime_error when a thread cannot be started or pinned.
  explicit Team(const TeamOptions& options);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // parallel_for and parallel_region (below) of plain functions.
  void run(const Loop& loop);
  void run_region(void (*body)(const void*), const void* context);

 private:
  void stop();
  void fork(const Loop* loop);
  void join();
  void worker_loop(int thread);
  uint32_t wait_for_loop(uint32_t served);
  void wait_for_stragglers();
  void work() noexcept;
  bool take(int64_t& begin, int64_t& end);

  const bool spin_;
  Phases phases_;
  // Written while the gate is closed and nobody is inside. None: a region, served by phases_.
  const Loop* loop_ = nullptr;
  FirstError error_;
  std::atomic<bool> stopping_{false};
  // Which loop it is, whether it may be entered, how many workers are inside (see team.cc).
  alignas(64) std::atomic<uint32_t> gate_{0};
  std::atomic<uint32_t> sleepers_{0};  // workers that sleep, or are about to
  std::atomic<uint32_t> caller_sleeps_{0};
  alignas(64) std::atomic<int64_t> next_{0};  // first part of the loop that nobody has taken
  std::vector<std::thread> workers_;
};

// The team of this thread; null outside UseTeam, inside a piece, and on the team's own workers.
Team* current_team();

// While it lives, parallel_for of this thread uses `team`.
class UseTeam {
 public:
  explicit UseTeam(Team& team);
  ~UseTeam();
  UseTeam(const UseTeam&) = delete;
  UseTeam& operator=(const UseTeam&) = delete;

 private:
  Team* previous_;
};

// Rows of `width` elements, each touched a few times, that are worth a thread's attention.
inline int64_t row_grain(int64_t width) {
  constexpr int64_t kElements = 16384;
  return width >= kElements ? 1 : kElements / (width > 0 ? width : 1);
}

// Calls body(begin, end) for pieces that together are [0, count), on all threads of the current
// team; returns when all are done. Pieces begin at multiples of `grain`: what is worth a thread's
// attention (some microseconds). Without a team, or with one piece, it is a plain call; so is a
// parallel_for inside a piece.
//
// An exception of a piece does not leave its thread: the loop ends early, and the first one is
// thrown again here.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  Team* team = current_team();
  if (team == nullptr || team->size() == 1 || count <= grain) return body(int64_t{0}, count);
  team->run({[](const void* b, int64_t begin, int64_t end) {
               (*static_cast<const Body*>(b))(begin, end);
             },
             &body, count, grain});
}

// Calls body() on this thread, as one parallel region of its team: the other threads wait inside
// for its loops and take a fixed share of each (layers/phases.h), where they would otherwise come
// for every loop and go again. A region inside a region is part of it.
template <class Body>
void parallel_region(const Body& body) {
  Team* team = current_team();
  if (team == nullptr || team->size() == 1) return body();
  team->run_region([](const void* b) { (*static_cast<const Body*>(b))(); }, &body);
}

}  // namespace troupe::layers
