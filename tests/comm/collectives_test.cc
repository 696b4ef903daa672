// Every collective against a serial model.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include "serial_model.h"

namespace troupe::comm {
namespace {

// The groups a rank of the script is in: the world, the world backwards, and its part of the world
// cut at random, in random order.
std::vector<std::unique_ptr<ProcessGroup>> groups_of(Communicator& communicator, int seed) {
  const int n = communicator.world_size();
  const std::vector<int> world = ranks_up_to(n);
  std::mt19937 random(n + seed);
  std::vector<int> shuffled = world;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  const auto cut = shuffled.begin() + 1 + static_cast<int>(random() % n);
  const bool upper = std::find(cut, shuffled.end(), communicator.world_rank()) != shuffled.end();
  std::vector<std::unique_ptr<ProcessGroup>> groups;
  groups.push_back(std::make_unique<ProcessGroup>(communicator, 0, world));
  groups.push_back(std::make_unique<ProcessGroup>(communicator, 1,
                                                  std::vector<int>(world.rbegin(), world.rend())));
  groups.push_back(std::make_unique<ProcessGroup>(
      communicator, upper ? 3 : 2,
      upper ? std::vector<int>(cut, shuffled.end()) : std::vector<int>(shuffled.begin(), cut)));
  return groups;
}

size_t random_count(std::mt19937& random) {
  constexpr size_t kSlot = kSmallSlot;
  const size_t choices[] = {0,
                            1,
                            kSlot / 4,
                            kSlot / 4 + 1,
                            kSlot - 1,
                            kSlot,
                            kSlot + 1,
                            3 * kSlot + 7,
                            16,  // around the ends of cache lines, in bytes and in floats
                            17,
                            63,
                            64,
                            65,
                            random() % 64,
                            random() % 64,
                            random() % kSlot};
  return choices[random() % std::size(choices)];
}

void stroll(std::mt19937& random) {
  if (random() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
}

// The same random calls on every rank, with a rank's own pauses between them.
void run_script(Arena& arena, int world_rank, int rounds, CommMode mode = CommMode::kInline) {
  Communicator communicator(arena, world_rank, kPatient, {.mode = mode});
  const auto groups = groups_of(communicator, rounds);
  std::mt19937 script(7 + communicator.world_size());
  std::mt19937 pauses(world_rank);
  const auto random_group = [&]() -> ProcessGroup& { return *groups[script() % groups.size()]; };
  for (int round = 0; round < rounds; ++round) {
    if (script() % 3 != 0) {
      const auto kind = static_cast<Kind>(script() % static_cast<uint32_t>(Kind::kCount));
      const size_t count = random_count(script);
      Call call(kind, script(), count, random_group());
      stroll(pauses);
      call.run();
      continue;
    }
    // Two handles of any groups, with a blocking call between them and one after.
    const auto random_call = [&] {
      const auto kind = static_cast<Kind>(script() % static_cast<uint32_t>(Kind::kCount));
      const size_t count = random_count(script);
      const uint64_t seed = script();
      return Call(kind, seed, count, random_group());
    };
    Call first = random_call(), between = random_call(), second = random_call();
    Call after = random_call();
    Pending first_pending = first.start();
    stroll(pauses);
    between.run();
    Pending second_pending = second.start();
    stroll(pauses);
    if (script() % 2 == 0) after.run();
    first_pending.wait();
    first.check();
    stroll(pauses);
    second_pending.wait();
    second.check();
  }
}

class CollectivesScript : public testing::TestWithParam<int> {};

TEST_P(CollectivesScript, EqualsTheSerialModelInThreads) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors = run_threads(
      world_size, [&](int rank) { run_script(arena, rank, world_size > 8 ? 100 : 250); });

  EXPECT_EQ(errors, all_fine(world_size));
}

TEST_P(CollectivesScript, EqualsTheSerialModelInProcesses) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors = Processes(world_size, [&](int rank) { run_script(arena, rank, 50); }).join();

  EXPECT_EQ(errors, all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, CollectivesScript, testing::Values(1, 2, 3, 5, 8, 16));

// Handles on a thread of each rank, blocking calls on its main thread.
class CollectivesScriptWithCommThreads : public testing::TestWithParam<int> {};

TEST_P(CollectivesScriptWithCommThreads, EqualsTheSerialModel) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors =
      run_threads(world_size, [&](int rank) { run_script(arena, rank, 150, CommMode::kThread); });

  EXPECT_EQ(errors, all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, CollectivesScriptWithCommThreads, testing::Values(1, 3, 8));

class ManyRanks : public testing::TestWithParam<int> {};

TEST_P(ManyRanks, EqualTheSerialModel) {
  const int world_size = GetParam();
  Arena arena = make_arena(world_size);

  const auto errors = Processes(world_size, [&](int rank) { run_script(arena, rank, 8); }).join();

  EXPECT_EQ(errors, all_fine(world_size));
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, ManyRanks, testing::Values(32, 128));

// One handle behind the other, in one group: the second must neither overtake nor disturb the
// first.
TEST(TwoHandlesOfAGroup, OfAnyTwoCollectivesAreBothComplete) {
  Arena arena = make_arena(4);

  const auto errors = run_threads(4, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, {2, 0, 3, 1});
    constexpr int kKinds = static_cast<int>(Kind::kCount);
    for (int pair = 0; pair < kKinds * kKinds; ++pair) {
      const size_t count = pair % 3 == 0 ? 3 * kSmallSlot + 5 : 40;  // several chunks, or one
      Call first(static_cast<Kind>(pair / kKinds), pair, count, group);
      Call second(static_cast<Kind>(pair % kKinds), pair + 1000, 41, group);
      Pending first_pending = first.start(), second_pending = second.start();
      first_pending.wait();
      first.check();
      second_pending.wait();
      second.check();
    }
  });

  EXPECT_EQ(errors, all_fine(4));
}

// Long vectors take another way than short ones: the sums must not show it.
TEST(AllReduce, OfLongAndShortVectorsAddsTheSameTree) {
  for (const int world_size : {2, 3, 5, 8}) {
    Arena arena = make_arena(world_size);
    const auto errors = run_threads(world_size, [&](int rank) {
      Communicator communicator(arena, rank, kPatient);
      ProcessGroup group(communicator, 0, ranks_up_to(world_size));
      for (const size_t count : {80'001u, 9'000u, 5u})
        for (const Kind kind : {Kind::kAllReduce, Kind::kAllReduceBf16, Kind::kAllReduceInt8})
          Call(kind, 99, count, group).run();
    });
    EXPECT_EQ(errors, all_fine(world_size));
  }
}

TEST(Barrier, NobodyLeavesBeforeTheLastHasCome) {
  const int world_size = 8;
  Arena arena = make_arena(world_size);
  std::atomic<int> arrived{0};

  const auto errors = run_threads(world_size, [&](int rank) {
    Communicator communicator(arena, rank, kPatient);
    ProcessGroup group(communicator, 0, ranks_up_to(world_size));
    std::mt19937 pauses(rank);
    for (int round = 1; round <= 200; ++round) {
      stroll(pauses);
      ++arrived;
      group.barrier();
      require(arrived >= round * world_size, "left early");
      group.barrier();
    }
  });

  EXPECT_EQ(errors, all_fine(world_size));
}

TEST(Barrier, StartedByAllIsNotOverBeforeTheLastHasStartedIt) {
  for (const CommMode mode : {CommMode::kInline, CommMode::kThread}) {
    const int world_size = 5;
    Arena arena = make_arena(world_size);
    std::atomic<int> arrived{0}, again{0};

    const auto errors = run_threads(world_size, [&](int rank) {
      Communicator communicator(arena, rank, kPatient, {.mode = mode});
      ProcessGroup group(communicator, 0, ranks_up_to(world_size));
      std::mt19937 pauses(rank);
      for (int round = 1; round <= 100; ++round) {
        stroll(pauses);
        ++arrived;
        Pending first = group.start_barrier();
        stroll(pauses);
        ++again;
        Pending second = group.start_barrier();
        first.wait();
        require(arrived >= round * world_size, "the first was over early");
        second.wait();
        require(again >= round * world_size, "the second was over early");
        group.barrier();
      }
    });

    EXPECT_EQ(errors, all_fine(world_size));
  }
}

}  // namespace
}  // namespace troupe::comm
