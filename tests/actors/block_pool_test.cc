#include "actors/block_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace troupe::actors {
namespace {

using Table = std::vector<int32_t>;

TEST(BlockPool, GivesTheLowestBlocksFirst) {
  BlockPool pool(5);
  Table a, b;

  EXPECT_TRUE(pool.extend(a, 2));
  EXPECT_TRUE(pool.extend(b, 1));
  EXPECT_TRUE(pool.extend(a, 4));

  EXPECT_EQ(a, (Table{0, 1, 3, 4}));
  EXPECT_EQ(b, (Table{2}));
  EXPECT_EQ(pool.free_blocks(), 0);
}

TEST(BlockPool, TakesNothingWhenTooFewBlocksAreFree) {
  BlockPool pool(3);
  Table a, b{7};
  ASSERT_TRUE(pool.extend(a, 1));

  EXPECT_FALSE(pool.extend(b, 4));

  EXPECT_EQ(b, (Table{7}));
  EXPECT_EQ(pool.free_blocks(), 2);
  EXPECT_TRUE(pool.extend(b, 3));  // of which it has one
}

TEST(BlockPool, LeavesATableThatIsLongEnoughAlone) {
  BlockPool pool(3);
  Table table;
  ASSERT_TRUE(pool.extend(table, 2));

  EXPECT_TRUE(pool.extend(table, 1));
  EXPECT_TRUE(pool.extend(table, 2));

  EXPECT_EQ(table, (Table{0, 1}));
  EXPECT_EQ(pool.free_blocks(), 1);
}

TEST(BlockPool, GivesReleasedBlocksAgain) {
  BlockPool pool(2);
  Table a, b;
  ASSERT_TRUE(pool.extend(a, 2));
  ASSERT_FALSE(pool.extend(b, 1));

  pool.release(a);

  EXPECT_TRUE(a.empty());
  EXPECT_EQ(pool.free_blocks(), 2);
  EXPECT_TRUE(pool.extend(b, 2));
}

TEST(BlockPool, NoBlockIsInTwoTablesAndNoneIsLost) {
  constexpr int64_t kBlocks = 37;
  std::mt19937 random(1);
  BlockPool pool(kBlocks);
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
    ASSERT_EQ(pool.free_blocks() + static_cast<int64_t>(taken.size()), kBlocks);
  }
}

}  // namespace
}  // namespace troupe::actors
