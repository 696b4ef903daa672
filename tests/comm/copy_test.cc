#include "comm/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace troupe::comm {
namespace {

TEST(StreamBytes, CopiesAnyNumberOfBytesFromAnywhere) {
  constexpr auto kGuard = std::byte{0x5a};
  alignas(64) std::byte to[8192];
  std::vector<std::byte> from(sizeof to);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 + i / 256);

  for (const size_t bytes : {0, 1, 15, 16, 17, 63, 64, 65, 128, 200, 4097}) {
    for (const size_t offset : {0, 1, 7, 16}) {
      for (const size_t place : {0, 16, 48}) {
        std::fill(std::begin(to), std::end(to), kGuard);
        stream_bytes(to + place, from.data() + offset, bytes);
        finish_streaming();

        ASSERT_TRUE(std::equal(to + place, to + place + bytes, from.data() + offset)) << bytes;
        ASSERT_EQ(to[place + bytes], kGuard) << bytes;
        ASSERT_TRUE(place == 0 || to[place - 1] == kGuard) << bytes;
      }
    }
  }
}

TEST(ExceedsCaches, KnowsAByteFromATebibyte) {
  EXPECT_FALSE(exceeds_caches(1));
  EXPECT_TRUE(exceeds_caches(size_t{1} << 40));
}

}  // namespace
}  // namespace troupe::comm
