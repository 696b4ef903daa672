#include "layers/team.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "every_isa.h"
#include "layers/rms_norm.h"
#include "layers/rope.h"
#include "layers/swiglu.h"
#include "layers/topk_gate.h"

namespace troupe::layers {
namespace {

using std::chrono::milliseconds;

struct Manner {
  bool spin;
  bool region;  // all loops of a test in one parallel_region
};

// Both ways of waiting are tried, whatever this machine has cores for, and both of sharing.
class AnyTeam : public testing::TestWithParam<Manner> {
 protected:
  TeamOptions options(int threads) const { return {.threads = threads, .spin = GetParam().spin}; }
  static void run(const std::function<void()>& loops) {
    GetParam().region ? parallel_region(loops) : loops();
  }
};
INSTANTIATE_TEST_SUITE_P(Waits, AnyTeam,
                         testing::Values(Manner{false, false}, Manner{true, false},
                                         Manner{false, true}, Manner{true, true}),
                         [](const auto& test) {
                           return fmt::format("{}{}", test.param.spin ? "Spinning" : "Sleeping",
                                              test.param.region ? "InARegion" : "");
                         });

TEST_P(AnyTeam, VisitsEveryPartOnceWhateverItsSize) {
  for (const int threads : {1, 2, 3, 8}) {
    Team team(options(threads));
    const UseTeam use(team);
    run([&] {
      for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
        for (const int64_t grain : {1, 3, 64, 2000}) {
          std::vector<int> visits(count);

          parallel_for(count, grain, [&](int64_t begin, int64_t end) {
            EXPECT_EQ(begin % grain, 0);
            for (int64_t i = begin; i < end; ++i) ++visits[i];
          });

          EXPECT_EQ(std::ranges::count(visits, 1), count) << threads << " threads, grain " << grain;
        }
      }
    });
  }
}

TEST_P(AnyTeam, SeesWhatTheLoopBeforeHasWritten) {
  Team team(options(3));
  const UseTeam use(team);
  constexpr int64_t kSize = 301;
  constexpr int kLoops = 2000;
  std::vector<int64_t> from(kSize), to(kSize);

  // Every part reads one that another thread may have written.
  run([&] {
    for (int loop = 0; loop < kLoops; ++loop) {
      parallel_for(kSize, 10, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = from[(i + 150) % kSize] + 1;
      });
      std::swap(from, to);
    }
  });

  EXPECT_EQ(std::ranges::count(from, kLoops), kSize);
}

TEST_P(AnyTeam, SharesALoopAmongItsThreads) {
  Team team(options(3));
  const UseTeam use(team);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::atomic<int> inside{0};

  // Nobody leaves a part before all three threads have taken one.
  run([&] {
    parallel_for(3, 1, [&](int64_t, int64_t) {
      {
        const std::lock_guard lock(mutex);
        threads.insert(std::this_thread::get_id());
      }
      for (++inside; inside < 3;) std::this_thread::yield();
    });
  });

  EXPECT_EQ(threads.size(), 3u);
  EXPECT_TRUE(threads.contains(std::this_thread::get_id()));
}

TEST_P(AnyTeam, WakesThreadsThatHaveGoneToSleep) {
  Team team(options(2));
  const UseTeam use(team);
  run([] {
    for (int loop = 0; loop < 3; ++loop) {
      std::this_thread::sleep_for(milliseconds(20));
      std::atomic<int> inside{0};

      parallel_for(2, 1, [&](int64_t, int64_t) {
        for (++inside; inside < 2;) std::this_thread::yield();
      });

      EXPECT_EQ(inside, 2);
    }
  });
}

TEST_P(AnyTeam, RunsALoopInsideAPieceInPlace) {
  Team team(options(2));
  const UseTeam use(team);
  std::atomic<int64_t> sum{0};

  run([&] {
    parallel_for(4, 1, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(current_team(), nullptr);
      const auto outer = std::this_thread::get_id();
      parallel_for(100, 1, [&](int64_t first, int64_t last) {
        EXPECT_EQ(std::this_thread::get_id(), outer);
        sum += (last - first) * (end - begin);
      });
    });
  });

  EXPECT_EQ(sum, 400);
  EXPECT_EQ(current_team(), &team);
}

TEST_P(AnyTeam, ThrowsAPiecesExceptionInTheCallerAndGoesOn) {
  Team team(options(2));
  const UseTeam use(team);
  const auto throwing = [](int64_t begin, int64_t end) {
    if (begin <= 77 && 77 < end) throw std::runtime_error("part 77");
  };

  try {
    run([&] { parallel_for(100, 1, throwing); });
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "part 77");
  }

  EXPECT_EQ(current_team(), &team);
  std::atomic<int64_t> visited{0};
  run([&] { parallel_for(100, 1, [&](int64_t begin, int64_t end) { visited += end - begin; }); });
  EXPECT_EQ(visited, 100);
}

TEST(ParallelRegion, GivesAThreadTheSameShareOfEveryLoop) {
  Team team({.threads = 3});
  const UseTeam use(team);
  std::array<std::array<std::thread::id, 3>, 4> takers;

  parallel_region([&] {
    for (auto& takers_of_loop : takers) {
      std::atomic<int> inside{0};
      // Nobody leaves a share before all have begun theirs, so no share is taken over.
      parallel_for(30, 10, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(end, begin + 10);
        takers_of_loop[begin / 10] = std::this_thread::get_id();
        for (++inside; inside < 3;) std::this_thread::yield();
      });
    }
  });

  EXPECT_EQ(takers[0][0], std::this_thread::get_id());
  for (const auto& takers_of_loop : takers) EXPECT_EQ(takers_of_loop, takers[0]);
}

TEST(ParallelRegion, InsideAnotherIsPartOfIt) {
  Team team({.threads = 2});
  const UseTeam use(team);
  std::atomic<int64_t> visited{0};
  const auto loop = [&] {
    parallel_for(100, 1, [&](int64_t begin, int64_t end) { visited += end - begin; });
  };

  parallel_region([&] {
    parallel_region(loop);
    loop();
  });
  loop();

  EXPECT_EQ(visited, 300);
}

TEST(ParallelRegion, ThatItsBodyLeavesByAnExceptionIsClosed) {
  Team team({.threads = 2});
  const UseTeam use(team);

  EXPECT_THROW(parallel_region([] { throw std::runtime_error("a rank is gone"); }),
               std::runtime_error);

  // The loops of a region are cut in fixed shares, those of none in many pieces.
  std::atomic<int> pieces{0};
  parallel_for(100, 1, [&](int64_t, int64_t) { ++pieces; });
  EXPECT_GT(pieces, 2);
}

TEST(Team, IsUsedByItsOwnThreadAlone) {
  Team team({.threads = 2});
  const UseTeam use(team);

  std::thread([] { EXPECT_EQ(current_team(), nullptr); }).join();

  {
    Team other({.threads = 3});
    const UseTeam use_other(other);
    EXPECT_EQ(current_team(), &other);
  }
  EXPECT_EQ(current_team(), &team);
}

// Everything that works row by row, on more rows than one thread takes at once.
struct RowOperations {
  static constexpr int64_t kRows = 600, kWidth = 128;
  std::vector<float> normed, activated, rotated, weights;
  std::vector<int32_t> ids;
  bool operator==(const RowOperations&) const = default;

  RowOperations()
      : normed(kRows * kWidth),
        activated(kRows * kWidth / 2),
        rotated(normal_floats(kRows * kWidth, 2)),
        weights(kRows * 4),
        ids(kRows * 4) {
    const std::vector<float> x = normal_floats(kRows * kWidth, 1);
    const std::vector<float> angles = normal_floats(kRows * kWidth / 2, 3);
    const Matrix<const float> rows(x.data(), kRows, kWidth);
    const Matrix<const float> cos(angles.data(), kRows, kWidth / 2);
    rms_norm(rows, std::span(x).first(kWidth), 1e-6f, Matrix(normed.data(), kRows, kWidth),
             Rounding::kBf16);
    swiglu(rows, Matrix(activated.data(), kRows, kWidth / 2), Rounding::kBf16);
    apply_rope(Matrix(rotated.data(), kRows, kWidth), 1, kWidth, cos, cos, Rounding::kBf16);
    topk_gate({.num_experts = kWidth, .topk = 4, .num_groups = 8, .topk_groups = 4}, rows, {},
              Matrix(ids.data(), kRows, int64_t{4}), Matrix(weights.data(), kRows, int64_t{4}));
  }
};

TEST(Team, ChangesNoBitOfWhatWorksRowByRow) {
  const RowOperations alone;
  for (const int threads : {2, 3, 8}) {
    Team team({.threads = threads});
    const UseTeam use(team);
    EXPECT_TRUE(RowOperations() == alone) << threads << " threads";
  }
}

TEST(Team, PutsEachThreadOnItsCpu) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  std::vector<int> allowed;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &before)) allowed.push_back(cpu);
  const int first = allowed.front(), second = allowed.back();

  {
    Team team({.threads = 2, .cpus = {first, second}});
    const UseTeam use(team);
    const auto caller = std::this_thread::get_id();
    std::atomic<int> inside{0};
    parallel_for(2, 1, [&](int64_t, int64_t) {
      for (++inside; inside < 2;) std::this_thread::yield();
      EXPECT_EQ(sched_getcpu(), std::this_thread::get_id() == caller ? first : second);
    });
  }

  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace troupe::layers
