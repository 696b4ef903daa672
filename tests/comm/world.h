// tests/comm/world.h: ranks as threads, where TSan sees races, and as processes, where death is
// real.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "comm/process_group.h"

namespace troupe::comm {

inline constexpr std::chrono::milliseconds kPatient{60'000};
inline constexpr size_t kSmallSlot = 4096;

// An arena with the smallest slots there are: short messages already travel in chunks.
Arena make_arena(int world_size, size_t slot_bytes = kSmallSlot);

using RankBody = std::function<void(int world_rank)>;

// Runs `body` once per rank and returns what each threw, "" for nothing.
std::vector<std::string> run_threads(int world_size, const RankBody& body);

// The same with a forked process per rank.
class Processes {
 public:
  Processes(int world_size, const RankBody& body);
  void kill(int rank, int signal = SIGKILL);  // returns when a killed one is dead
  std::vector<std::string> join();            // "killed by signal 9" for a rank that died so

 private:
  std::vector<pid_t> children_;
  Mapping texts_;
};

// Returns once `rank` is in its collective number `sequence`, or some rank has failed.
void await_collective(const Arena& arena, int rank, uint64_t sequence);

// For bodies: a gtest assertion in a child process would be lost.
void require(bool condition, const std::string& what);

// With what is missing in the failure's text.
testing::AssertionResult contains(const std::string& text, const std::string& part);

// world_size times nothing.
std::vector<std::string> all_fine(int world_size);

std::vector<int> ranks_up_to(int count);

}  // namespace troupe::comm
