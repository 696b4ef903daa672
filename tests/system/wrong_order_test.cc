// The comparison of layouts sees a wrong order of addition: these tests start the program linked
// with wrong_tree_sum.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/system/layout_case.h"

namespace troupe::system_tests {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

struct Cut {
  const char* name;
  Layout layout;
  const char* operation;  // the first that verify must name
};

std::ostream& operator<<(std::ostream& out, const Cut& cut) { return out << cut.name; }

class WrongOrder : public testing::TestWithParam<Cut> {};

TEST_P(WrongOrder, GivesOtherBitsThanOneRank) {
  const OneRank one_rank(tiny_moe_case("float32"));

  EXPECT_THAT(one_rank.differing_tensors(GetParam().layout), Not(IsEmpty()));
}

TEST_P(WrongOrder, IsFoundAndNamedByVerify) {
  const json config = with_layout(tiny_moe_case("float32").config, GetParam().layout);
  const model::TemporaryDirectory files;

  const Ended ended = run_troupe(command_line("verify", config, {}, files));

  EXPECT_EQ(ended.status, 1) << ended.out << ended.err;
  EXPECT_THAT(ended.out, testing::StartsWith(GetParam().operation));
  EXPECT_THAT(ended.out, HasSubstr(" tokens differ, first at token 0"));
  EXPECT_EQ(ended.err, "");
}

INSTANTIATE_TEST_SUITE_P(
    Of, WrongOrder,
    testing::Values(
        Cut{"Attention", {4, 4, 1, 1, 1, 1, 1, 1, 0}, "layer 0 attention (o_proj, attn_tp 4)"},
        Cut{"OProj", {4, 1, 1, 1, 1, 1, 1, 4, 1}, "layer 0 attention (o_proj, o_proj_tp 4)"},
        Cut{"Dense", {4, 1, 1, 4, 1, 1, 1, 1, 0}, "layer 0 feed-forward (down_proj, dense_tp 4)"},
        Cut{"Experts", {4, 1, 4, 1, 1, 1, 1, 1, 0}, "layer 1 feed-forward (experts, moe_tp 4)"},
        Cut{"SharedExpert",
            {4, 1, 1, 1, 4, 1, 1, 1, 0},
            "layer 1 feed-forward (experts, moe_ep 4, shared_tp 4)"}),
    [](const auto& test) { return test.param.name; });

// Rounding to bfloat16 hides most of the differences: of one cut perhaps all, of all cuts never.
TEST(WrongOrderOfAllSums, GivesOtherBitsInBfloat16) {
  const OneRank one_rank(tiny_moe_case("bfloat16"));

  EXPECT_THAT(one_rank.differing_tensors({4, 4, 4, 4, 4, 1, 1, 1, 0}), Not(IsEmpty()));
}

// Only sums are wrong in this program: it is the order that the tests above see.
TEST(WrongOrderOfTwo, IsTheRightOrder) {
  const OneRank one_rank(tiny_moe_case("bfloat16"));

  EXPECT_THAT(one_rank.differing_tensors({2, 2, 2, 2, 2, 2, 2, 1, 0}), IsEmpty());
}

}  // namespace
}  // namespace troupe::system_tests
