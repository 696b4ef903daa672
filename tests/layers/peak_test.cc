#include "layers/peak.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "every_isa.h"
#include "layers/kernels.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

TEST(Peak, ItsLoopsReadEveryFloatAndComputeWhatTheyCount) {
  std::vector<float> floats(1024);
  std::iota(floats.begin(), floats.end(), 0.0f);

  on_every_isa([&] {
    EXPECT_EQ(kernels().read_floats(floats.data(), 1024), 1024 * 1023 / 2);  // exact in fp32

    // Chain j is x = x / 2 + 1 from j, in 16 lanes: j / 4 + 1.5 after two rounds.
    float sum = 0;
    const int64_t operations = kernels().fma_chains(2, &sum);
    const int64_t chains = operations / (2 * 16 * 2);
    float expected = 0;
    for (int64_t j = 0; j < chains; ++j) expected += 16 * (static_cast<float>(j) / 4 + 1.5f);
    EXPECT_EQ(operations, chains * 2 * 16 * 2);
    EXPECT_GT(chains, 0);
    EXPECT_EQ(sum, expected);
  });
}

TEST(Peak, TheScalarPathIsHeldAgainstItsOwnArithmetic) {
  const Isa before = active_isa();
  force_isa(Isa::kScalar);
  EXPECT_EQ(best_arithmetic(Arithmetic::kBf16), Arithmetic::kF32);
  EXPECT_EQ(best_arithmetic(Arithmetic::kInt8), Arithmetic::kF32);
  force_isa(before);
}

TEST(Peak, MeasuresWithAnyNumberOfThreads) {
  const std::vector<float> memory(1 << 16);
  for (const int threads : {1, 3}) {
    Team team({.threads = threads});
    const UseTeam use(team);
    EXPECT_GT(measure_read_bandwidth(std::as_bytes(std::span(memory)), 0.001), 0);
    for (const auto arithmetic : {Arithmetic::kF32, Arithmetic::kBf16, Arithmetic::kInt8})
      EXPECT_GT(measure_peak(arithmetic, 0.001), 0) << arithmetic_name(arithmetic);
  }
}

}  // namespace
}  // namespace troupe::layers
