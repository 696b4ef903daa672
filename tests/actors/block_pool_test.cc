#include "actors/block_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace troupe::actors {
namespace {

using Table = std::vector<int32_t>;

TEST(BlockPool, GivesTheLowestBlocksFirst) {
  BlockPool pool(5, 2);
  Table a, b;

  EXPECT_TRUE(pool.extend(a, 2));
  EXPECT_TRUE(pool.extend(b, 1));
  EXPECT_TRUE(pool.extend(a, 4));

  EXPECT_EQ(a, (Table{0, 1, 3, 4}));
  EXPECT_EQ(b, (Table{2}));
  EXPECT_EQ(pool.available(), 0);
}

TEST(BlockPool, TakesNothingWhenTooFewBlocksAreFree) {
  BlockPool pool(3, 2);
  Table a, b{7};
  ASSERT_TRUE(pool.extend(a, 1));

  EXPECT_FALSE(pool.extend(b, 4));

  EXPECT_EQ(b, (Table{7}));
  EXPECT_EQ(pool.available(), 2);
  EXPECT_TRUE(pool.extend(b, 3));  // of which it has one
}

TEST(BlockPool, LeavesATableThatIsLongEnoughAlone) {
  BlockPool pool(3, 2);
  Table table;
  ASSERT_TRUE(pool.extend(table, 2));

  EXPECT_TRUE(pool.extend(table, 1));
  EXPECT_TRUE(pool.extend(table, 2));

  EXPECT_EQ(table, (Table{0, 1}));
  EXPECT_EQ(pool.available(), 1);
}

TEST(BlockPool, GivesReleasedBlocksAgain) {
  BlockPool pool(2, 2);
  Table a, b;
  ASSERT_TRUE(pool.extend(a, 2));
  ASSERT_FALSE(pool.extend(b, 1));

  pool.release(a);

  EXPECT_TRUE(a.empty());
  EXPECT_EQ(pool.available(), 2);
  EXPECT_TRUE(pool.extend(b, 2));
}

TEST(BlockPool, NoBlockIsInTwoTablesAndNoneIsLost) {
  constexpr int64_t kBlocks = 37;
  std::mt19937 random(1);
  BlockPool pool(kBlocks, 2);
  std::vector<Table> tables(6);

  for (int i = 0; i < 5000; ++i) {
    Table& table = tables[random() % tables.size()];
    if (random() % 4 == 0)
      pool.release(table);
    else
      pool.extend(table, static_cast<int64_t>(table.size() + random() % 10));

    std::set<int32_t> taken;
    for (const Table& t : tables)
      for (const int32_t block : t) {
        ASSERT_TRUE(block >= 0 && block < kBlocks) << block;
        ASSERT_TRUE(taken.insert(block).second) << block << " twice";
      }
    ASSERT_EQ(pool.available() + static_cast<int64_t>(taken.size()), kBlocks);
  }
}

// ---- reuse --------------------------------------------------------------------------------------

constexpr auto kStart = BlockPool::kNoContent;

TEST(BlockPool, FindsABlockByWhatItHoldsAndWhatComesBefore) {
  BlockPool pool(4, 2);
  Table a;
  ASSERT_TRUE(pool.extend(a, 2));
  const auto first = pool.publish(0, kStart, Table{1, 2});
  const auto second = pool.publish(1, first, Table{3, 4});

  EXPECT_EQ(pool.find(kStart, Table{1, 2})->block, 0);
  EXPECT_EQ(pool.find(kStart, Table{1, 2})->content, first);
  EXPECT_EQ(pool.find(first, Table{3, 4})->block, 1);
  EXPECT_EQ(pool.find(first, Table{3, 4})->content, second);
  EXPECT_FALSE(pool.find(kStart, Table{1, 3}));
  EXPECT_FALSE(pool.find(kStart, Table{3, 4}));  // the same tokens at another place
  EXPECT_FALSE(pool.find(second, Table{3, 4}));
}

TEST(BlockPool, ASharedBlockIsKeptUntilItsLastUserLeaves) {
  BlockPool pool(2, 2);
  Table a, b, c;
  ASSERT_TRUE(pool.extend(a, 1));
  pool.publish(0, kStart, Table{1, 2});
  b.push_back(pool.take(kStart, Table{1, 2})->block);

  pool.release(a);
  EXPECT_EQ(pool.in_use(), 1);
  EXPECT_FALSE(pool.extend(c, 2));
  pool.release(b);

  EXPECT_EQ(pool.in_use(), 0);
  EXPECT_TRUE(pool.find(kStart, Table{1, 2}));  // cached
  EXPECT_TRUE(pool.extend(c, 2));
  EXPECT_FALSE(pool.find(kStart, Table{1, 2}));  // needed for something else
}

TEST(BlockPool, TheBlockUnusedForLongestGoesFirstAndTheEndOfASequenceBeforeItsBeginning) {
  BlockPool pool(4, 2);
  Table a, b, c;
  ASSERT_TRUE(pool.extend(a, 2));
  const auto first = pool.publish(0, kStart, Table{1, 2});
  pool.publish(1, first, Table{3, 4});
  ASSERT_TRUE(pool.extend(b, 1));
  pool.publish(2, kStart, Table{7, 8});
  pool.release(a);
  pool.release(b);

  ASSERT_TRUE(pool.extend(c, 2));  // the free one, and the end of a
  EXPECT_EQ(c, (Table{3, 1}));
  pool.release(c);
  Table again{pool.take(kStart, Table{1, 2})->block};  // used: now the newest
  pool.release(again);
  ASSERT_TRUE(pool.extend(c, 3));

  EXPECT_FALSE(pool.find(kStart, Table{7, 8}));
  EXPECT_TRUE(pool.find(kStart, Table{1, 2}));
}

TEST(BlockPool, AContentPublishedTwiceIsTheFirstOne) {
  BlockPool pool(3, 2);
  Table a, b;
  ASSERT_TRUE(pool.extend(a, 1));
  ASSERT_TRUE(pool.extend(b, 1));
  const auto content = pool.publish(0, kStart, Table{1, 2});

  EXPECT_EQ(pool.publish(1, kStart, Table{1, 2}), content);
  EXPECT_EQ(pool.find(kStart, Table{1, 2})->block, 0);
  pool.release(a);
  pool.release(b);
  EXPECT_EQ(pool.available(), 3);
}

TEST(BlockPool, WhatFollowsAnEvictedContentIsNotFoundAgain) {
  BlockPool pool(2, 1);
  Table a, b, c;
  ASSERT_TRUE(pool.extend(a, 1));
  const auto old = pool.publish(0, kStart, Table{1});
  ASSERT_TRUE(pool.extend(b, 1));
  pool.publish(1, old, Table{2});
  pool.release(a);
  ASSERT_TRUE(pool.extend(c, 1));  // takes block 0
  const auto other = pool.publish(0, kStart, Table{9});

  EXPECT_NE(other, old);
  EXPECT_FALSE(pool.find(other, Table{2}));
}

}  // namespace
}  // namespace troupe::actors
