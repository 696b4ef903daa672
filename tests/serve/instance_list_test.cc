#include "serve/instance_list.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <numeric>

namespace troupe::serve {
namespace {

using Ids = std::vector<int32_t>;

Ids prompt(int length, int first) {
  Ids ids(length);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

class InstanceListTest : public testing::Test {
 protected:
  JoinedInstance& add(pd::Role role, int batch_size = 8) {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
    others_.emplace_back(ends[1]);
    return list_.add(PeerLink(Fd(ends[0])), about(role, batch_size), {});
  }
  static pd::InstanceT about(pd::Role role, int batch_size) {
    pd::InstanceT about;
    about.role = role;
    about.block_size = 16;
    about.batch_size = batch_size;
    return about;
  }

  InstanceList list_;
  std::vector<Fd> others_;
};

TEST_F(InstanceListTest, APromptGoesToTheOneWithLeastToRead) {
  JoinedInstance& busy = add(pd::Role::Prefill);
  JoinedInstance& free = add(pd::Role::Prefill);
  add(pd::Role::Decode);
  EXPECT_EQ(list_.choose_prefill(prompt(100, 1)), &busy);  // both free: the first
  busy.open_tokens = 1000;

  EXPECT_EQ(list_.choose_prefill(prompt(100, 1)), &free);
}

TEST_F(InstanceListTest, AmongAlmostEqualsThePromptGoesWhereItsBeginningWasRead) {
  JoinedInstance& other = add(pd::Role::Prefill);
  JoinedInstance& knows = add(pd::Role::Prefill);
  knows.prefixes.add(prompt(64, 1), 16);
  Ids longer = prompt(64, 1);
  for (int i = 0; i < 40; ++i) longer.push_back(7);
  EXPECT_EQ(knows.prefixes.known_tokens(longer, 16), 64);
  EXPECT_EQ(knows.prefixes.known_tokens(prompt(64, 2), 16), 0);

  knows.open_tokens = 104;  // as much as the prompt itself
  EXPECT_EQ(list_.choose_prefill(longer), &knows);
  EXPECT_EQ(list_.choose_prefill(prompt(104, 300)), &other);
  knows.open_tokens = 105;
  EXPECT_EQ(list_.choose_prefill(longer), &other);
}

TEST_F(InstanceListTest, AnAnswerIsMadeWhereMostSeatsThenMostBlocksAreFree) {
  JoinedInstance& small = add(pd::Role::Decode, 4);
  JoinedInstance& large = add(pd::Role::Decode, 8);
  EXPECT_EQ(list_.choose_decode(), &large);
  large.open = 4;
  small.state.blocks = large.state.blocks = 100;
  large.state.blocks_in_use = 10;
  EXPECT_EQ(list_.choose_decode(), &small);
  small.state.blocks_in_use = 20;
  EXPECT_EQ(list_.choose_decode(), &large);
}

TEST_F(InstanceListTest, WhoLeavesOrHasGoneIsNotChosen) {
  JoinedInstance& leaving = add(pd::Role::Decode);
  leaving.state.leaving = true;
  JoinedInstance& gone = add(pd::Role::Decode);
  gone.link.close();

  EXPECT_EQ(list_.choose_decode(), nullptr);
  EXPECT_EQ(list_.choose_prefill(prompt(3, 1)), nullptr);
}

TEST_F(InstanceListTest, WhatDoesNotFitIsNamed) {
  EXPECT_EQ(list_.objection(about(pd::Role::Prefill, 4)), "");
  add(pd::Role::Prefill);
  EXPECT_EQ(list_.objection(about(pd::Role::Decode, 4)), "");
  pd::InstanceT other = about(pd::Role::Decode, 4);
  other.block_size = 32;
  EXPECT_EQ(list_.objection(other),
            "scheduler_config.block_size is 32 here and 16 there (prefill 0)");
}

}  // namespace
}  // namespace troupe::serve
