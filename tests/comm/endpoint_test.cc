#include "comm/endpoint.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include <cstring>

#include "base/error.h"

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

std::string text_of(const ReceivedMessage& message) {
  return {reinterpret_cast<const char*>(message.body.data()), message.body.size()};
}

// The next message as "rank: body"; "nothing" if none comes.
std::string next(LauncherEndpoint& launcher, int patience_ms = 20'000) {
  for (int waited = 0; waited <= patience_ms; waited += 50) {
    if (const auto message = launcher.receive())
      return fmt::format("{}: {}", message->from_rank, text_of(*message));
    pollfd fd{.fd = launcher.poll_fd(), .events = POLLIN, .revents = 0};
    ::poll(&fd, 1, 50);
  }
  return "nothing";
}

std::string next(RankEndpoint& rank) {
  const auto message = rank.receive(milliseconds(20'000));
  return message ? text_of(*message) : "nothing";
}

// A peer that does not keep to the rules.
class RawDealer {
 public:
  RawDealer(const std::string& address, const std::string& id) {
    zmq_setsockopt(socket_, ZMQ_ROUTING_ID, id.data(), id.size());
    zmq_connect(socket_, address.c_str());
  }
  ~RawDealer() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  void send(const std::string& text, int flags = 0) {
    zmq_send(socket_, text.data(), text.size(), flags);
  }

 private:
  void* context_ = zmq_ctx_new();
  void* socket_ = zmq_socket(context_, ZMQ_DEALER);
};

TEST(Endpoint, CarriesMessagesBothWays) {
  LauncherEndpoint launcher(2);
  RankEndpoint rank0(launcher.address(), 0);
  RankEndpoint rank1(launcher.address(), 1);

  rank1.send(bytes_of("hello"));
  ASSERT_EQ(next(launcher), "1: hello");
  rank0.send(bytes_of(""));
  ASSERT_EQ(next(launcher), "0: ");
  launcher.send(0, bytes_of("plan for 0"));
  launcher.send(1, bytes_of("plan for 1"));

  EXPECT_EQ(next(rank1), "plan for 1");
  EXPECT_EQ(next(rank0), "plan for 0");
}

TEST(Endpoint, KeepsTheOrderOfOneRanksMessages) {
  LauncherEndpoint launcher(1);
  RankEndpoint rank(launcher.address(), 0);

  for (int i = 0; i < 200; ++i) rank.send(bytes_of(std::to_string(i)));

  for (int i = 0; i < 200; ++i) ASSERT_EQ(next(launcher), "0: " + std::to_string(i));
}

TEST(Endpoint, DeliversBodiesOfAnySizeAligned) {
  LauncherEndpoint launcher(1);
  RankEndpoint rank(launcher.address(), 0);

  for (const size_t size : {1u, 29u, 30u, 63u, 4097u, 3'000'001u}) {
    const std::string text(size, 'x');
    rank.send(bytes_of(text));
    ASSERT_EQ(next(launcher), "0: " + text);
    launcher.send(0, bytes_of(text));
    const auto message = rank.receive(milliseconds(20'000));
    ASSERT_TRUE(message);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(message->body.data()) % 16, 0u);
    EXPECT_EQ(text_of(*message), text);
  }
}

TEST(Endpoint, AReceiveWithoutMessagesReturnsNothing) {
  LauncherEndpoint launcher(1);
  RankEndpoint rank(launcher.address(), 0);

  EXPECT_FALSE(launcher.receive());
  EXPECT_FALSE(rank.receive(milliseconds(0)));
  EXPECT_FALSE(rank.receive(milliseconds(20)));
}

TEST(Endpoint, DropsMessagesOfUnknownSendersAndOfWrongShape) {
  LauncherEndpoint launcher(2);
  RawDealer beyond(launcher.address(), "2"), padded(launcher.address(), "01");
  RawDealer word(launcher.address(), "x"), negative(launcher.address(), "-1");
  RawDealer parts(launcher.address(), "1");
  RankEndpoint rank(launcher.address(), 0);

  for (RawDealer* stranger : {&beyond, &padded, &word, &negative}) stranger->send("let me in");
  parts.send("part one", ZMQ_SNDMORE);
  parts.send("part two", ZMQ_SNDMORE);
  parts.send("part three");
  parts.send("whole");
  rank.send(bytes_of("hello"));

  std::vector<std::string> got{next(launcher), next(launcher)};
  std::sort(got.begin(), got.end());
  EXPECT_EQ(got, (std::vector<std::string>{"0: hello", "1: whole"}));
  EXPECT_EQ(next(launcher, 100), "nothing");
}

TEST(Endpoint, SendingToARankThatNeverCameIsARankError) {
  LauncherEndpoint launcher(2);

  try {
    launcher.send(1, bytes_of("plan"));
    FAIL() << "sent to nobody";
  } catch (const RankError& error) {
    EXPECT_STREQ(error.what(), "rank 1 is not connected to the launcher");
  }
}

TEST(Endpoint, EveryLauncherHasAnAddressOfItsOwnOutsideTheFileSystem) {
  const LauncherEndpoint one(1), other(1);

  EXPECT_NE(one.address(), other.address());
  EXPECT_EQ(one.address().substr(0, 14), "ipc://@troupe-");
  EXPECT_EQ(one.address().size(), 14u + 32u);
}

TEST(Endpoint, RefusesProcessesOfAnotherUser) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root to become another user";
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const pid_t child = ::fork();  // before this process has a ZeroMQ context
  if (child == 0) {
    ::close(pipe[1]);
    char address[64] = {};
    const bool known = ::read(pipe[0], address, sizeof(address) - 1) > 0;
    if (!known || ::setuid(65534) != 0) ::_exit(1);
    RawDealer stranger(address, "0");
    stranger.send("let me in");
    const ssize_t end_of_test = ::read(pipe[0], address, 1);
    ::_exit(end_of_test == 0 ? 0 : 1);
  }
  ::close(pipe[0]);
  LauncherEndpoint launcher(2);
  const std::string& address = launcher.address();
  ASSERT_EQ(::write(pipe[1], address.data(), address.size()), static_cast<ssize_t>(address.size()));
  RankEndpoint rank(address, 1);
  rank.send(bytes_of("hello"));

  EXPECT_EQ(next(launcher), "1: hello");
  EXPECT_EQ(next(launcher, 300), "nothing");

  ::close(pipe[1]);
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace troupe::comm
