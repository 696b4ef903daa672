#include "serve/peer_link.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <optional>

namespace troupe::serve {
namespace {

using Bytes = std::vector<uint8_t>;

struct Pair {
  Pair() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
    a.emplace(Fd(ends[0]));
    raw = ::dup(ends[1]);
    b.emplace(Fd(ends[1]));
  }
  ~Pair() { ::close(raw); }
  void read() {
    b->read_more([this](std::span<const uint8_t> message, std::vector<Fd> files) {
      received.emplace_back(message.begin(), message.end());
      received_files.push_back(std::move(files));
    });
  }

  std::optional<PeerLink> a, b;
  int raw = -1;  // b's end, byte by byte
  std::vector<Bytes> received;
  std::vector<std::vector<Fd>> received_files;
};

TEST(PeerLink, MessagesAndDescriptorsComeWholeAndInOrder) {
  Pair pair;
  const Fd memory = create_shared_memory("test", 4096);
  const std::array<int, 1> files{memory.get()};
  pair.a->send(Bytes{1, 2, 3});
  pair.a->send(Bytes{}, files);
  pair.a->send(Bytes(3, 9));
  pair.read();

  EXPECT_EQ(pair.received, (std::vector<Bytes>{{1, 2, 3}, {}, {9, 9, 9}}));
  ASSERT_EQ(pair.received_files[1].size(), 1);
  EXPECT_EQ(Mapping(pair.received_files[1][0].get(), 4096, Mapping::Access::kReadOnly).size(),
            4096);
  EXPECT_TRUE(pair.received_files[0].empty() && pair.received_files[2].empty());
}

TEST(PeerLink, WhatTheSocketDoesNotTakeIsSentLater) {
  Pair pair;
  const Bytes large(size_t{3} << 20, 7);
  pair.a->send(large);
  pair.a->send(Bytes{5});
  EXPECT_TRUE(pair.a->wants_to_write());
  for (int i = 0; i < 10'000 && pair.received.size() < 2; ++i) {
    pair.read();
    pair.a->write_more();
  }

  ASSERT_EQ(pair.received.size(), 2);
  EXPECT_EQ(pair.received[0], large);
  EXPECT_FALSE(pair.a->wants_to_write());
}

TEST(PeerLink, AnEndOrNonsenseBreaksIt) {
  Pair ended;
  ended.a.reset();
  ended.read();
  EXPECT_TRUE(ended.b->broken());

  Pair huge;
  const std::array<uint32_t, 2> header{PeerLink::kMostBytes + 1, 0};
  ASSERT_EQ(::write(huge.raw, header.data(), sizeof(header)), 8);
  huge.a->read_more([](auto, auto) { FAIL(); });
  EXPECT_TRUE(huge.a->broken());

  Pair promised;
  const std::array<uint32_t, 2> without{0, 1};  // a descriptor that did not come
  ASSERT_EQ(::write(promised.raw, without.data(), sizeof(without)), 8);
  promised.a->read_more([](auto, auto) { FAIL(); });
  EXPECT_TRUE(promised.a->broken());
}

}  // namespace
}  // namespace troupe::serve
