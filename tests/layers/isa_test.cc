#include "layers/isa.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "base/error.h"

namespace troupe::layers {
namespace {

// active_isa() reads the environment once per process: each case asks in a process of its own,
// which answers by its exit status.
void exit_with_isa_of(const char* name) {
  ::setenv("TROUPE_ISA", name, 1);
  try {
    std::exit(10 + static_cast<int>(active_isa()));
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::exit(kExitUserError);
  }
}

class IsaDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST(Isa, AlwaysOffersThePlainPathFirst) {
  ASSERT_FALSE(supported_isas().empty());
  EXPECT_EQ(supported_isas().front(), Isa::kScalar);
  EXPECT_TRUE(std::is_sorted(supported_isas().begin(), supported_isas().end()));
}

TEST(Isa, SwitchesWhereATestAsksForIt) {
  const Isa before = active_isa();
  for (const Isa isa : supported_isas()) {
    force_isa(isa);
    EXPECT_EQ(active_isa(), isa);
  }
  force_isa(before);
}

TEST_F(IsaDeathTest, ObeysTheEnvironment) {
  for (const Isa isa : supported_isas())
    EXPECT_EXIT(exit_with_isa_of(isa_name(isa)),
                testing::ExitedWithCode(10 + static_cast<int>(isa)), "");
}

TEST_F(IsaDeathTest, TakesTheBestPathWhenTheEnvironmentIsSilent) {
  EXPECT_EXIT(exit_with_isa_of(""),
              testing::ExitedWithCode(10 + static_cast<int>(supported_isas().back())), "");
}

TEST_F(IsaDeathTest, RefusesANameItDoesNotKnow) {
  EXPECT_EXIT(exit_with_isa_of("sse9"), testing::ExitedWithCode(kExitUserError),
              "TROUPE_ISA=sse9.*scalar, avx2, avx512 or avx512_bf16");
}

TEST_F(IsaDeathTest, RefusesAPathThisMachineLacks) {
  if (supported_isas().back() == Isa::kAvx512Bf16) GTEST_SKIP() << "this machine has all of them";
  EXPECT_EXIT(exit_with_isa_of("avx512_bf16"), testing::ExitedWithCode(kExitUserError),
              "TROUPE_ISA=avx512_bf16: this machine lacks it");
}

}  // namespace
}  // namespace troupe::layers
