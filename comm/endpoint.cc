#include "comm/endpoint.h"

#include <fmt/ranges.h>
#include <poll.h>
#include <sys/random.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/error.h"

#if defined(__SANITIZE_THREAD__)
// The distribution's libzmq is not instrumented: ThreadSanitizer does not see how it synchronises.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() { return "called_from_lib:libzmq.so\n"; }
#endif

namespace troupe::comm {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int64_t kMaxMessageBytes = int64_t{64} << 20;
constexpr milliseconds kLastWordsLinger{1000};  // a rank says why it ends and ends at once

[[noreturn]] void throw_zmq_error(const char* call) {
  throw RankError(fmt::format("{}: {}", call, zmq_strerror(zmq_errno())));
}

template <class T>
void set_option(void* socket, int option, T value) {
  if (zmq_setsockopt(socket, option, &value, sizeof(value)) != 0) throw_zmq_error("zmq_setsockopt");
}

// A context with one socket. Its end waits up to `linger` for what has been sent to leave the
// process; the rest is lost.
class Socket {
 public:
  Socket(int type, milliseconds linger) : context_(zmq_ctx_new()) {
    if (context_ != nullptr) socket_ = zmq_socket(context_, type);
    if (socket_ == nullptr) throw_zmq_error("zmq_socket");
    set_option(socket_, ZMQ_LINGER, static_cast<int>(linger.count()));
    set_option(socket_, ZMQ_MAXMSGSIZE, kMaxMessageBytes);
  }
  Socket(const Socket&) = delete;
  ~Socket() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  void* get() const { return socket_; }

 private:
  void* context_ = nullptr;
  void* socket_ = nullptr;
};

class Frame {
 public:
  Frame() { zmq_msg_init(&message_); }
  Frame(const Frame&) = delete;
  ~Frame() { zmq_msg_close(&message_); }

  // False if nothing is there.
  bool receive(void* socket) {
    while (zmq_msg_recv(&message_, socket, ZMQ_DONTWAIT) < 0) {
      if (zmq_errno() == EAGAIN) return false;
      if (zmq_errno() != EINTR) throw_zmq_error("zmq_msg_recv");
    }
    return true;
  }
  bool more() const { return zmq_msg_more(&message_) != 0; }
  std::span<const std::byte> bytes() {
    return {static_cast<const std::byte*>(zmq_msg_data(&message_)), zmq_msg_size(&message_)};
  }

 private:
  zmq_msg_t message_;
};

// Copies a body to where FlatBuffers may read it.
class AlignedBody {
 public:
  std::span<const std::byte> assign(std::span<const std::byte> body) {
    bytes_.assign(body.begin(), body.end());
    return bytes_;
  }

 private:
  static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16, "vectors of bytes are 16-byte aligned");
  std::vector<std::byte> bytes_;
};

bool send_frame(void* socket, std::span<const std::byte> bytes, int flags) {
  while (zmq_send(socket, bytes.data(), bytes.size(), flags | ZMQ_DONTWAIT) < 0)
    if (zmq_errno() != EINTR) return false;
  return true;
}

void check_size(std::span<const std::byte> body) {
  TROUPE_CHECK(static_cast<int64_t>(body.size()) <= kMaxMessageBytes, "a message of {} bytes",
               body.size());
}

std::string fresh_address() {
  std::array<uint8_t, 16> random{};
  if (::getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size()))
    throw RankError(errno_text("getrandom"));
  return fmt::format("ipc://@troupe-{:02x}", fmt::join(random, ""));
}

// The rank whose routing id this is, -1 if nobody's.
int rank_of(std::span<const std::byte> id, int world_size) {
  const char* text = reinterpret_cast<const char*>(id.data());
  int rank = -1;
  const auto [end, error] = std::from_chars(text, text + id.size(), rank);
  const bool valid = error == std::errc() && rank >= 0 && rank < world_size &&
                     fmt::format("{}", rank).size() == id.size();
  return valid ? rank : -1;
}

}  // namespace

struct LauncherEndpoint::Impl {
  Socket socket{ZMQ_ROUTER, milliseconds(0)};
  AlignedBody body;
  int world_size = 0;
};

LauncherEndpoint::LauncherEndpoint(int world_size)
    : impl_(std::make_unique<Impl>()), address_(fresh_address()) {
  impl_->world_size = world_size;
  void* socket = impl_->socket.get();
  set_option(socket, ZMQ_ROUTER_MANDATORY, 1);
  // Names in the abstract namespace have no permissions: everybody may connect, so ask who it is.
  set_option(socket, ZMQ_IPC_FILTER_UID, ::getuid());
  if (zmq_bind(socket, address_.c_str()) != 0) throw_zmq_error("zmq_bind");
}

LauncherEndpoint::~LauncherEndpoint() = default;

int LauncherEndpoint::poll_fd() const {
  int fd = -1;
  size_t size = sizeof(fd);
  if (zmq_getsockopt(impl_->socket.get(), ZMQ_FD, &fd, &size) != 0) throw_zmq_error("ZMQ_FD");
  return fd;
}

void LauncherEndpoint::send(int rank, std::span<const std::byte> body) {
  check_size(body);
  const std::string id = fmt::format("{}", rank);
  if (!send_frame(impl_->socket.get(), std::as_bytes(std::span(id)), ZMQ_SNDMORE)) {
    if (zmq_errno() == EHOSTUNREACH)
      throw_rank_error("rank {} is not connected to the launcher", rank);
    if (zmq_errno() == EAGAIN) throw_rank_error("rank {} does not read its messages", rank);
    throw_zmq_error("zmq_send");
  }
  if (!send_frame(impl_->socket.get(), body, 0)) throw_zmq_error("zmq_send");
}

std::optional<ReceivedMessage> LauncherEndpoint::receive() {
  for (;;) {
    Frame id, body, surplus;
    if (!id.receive(impl_->socket.get())) return std::nullopt;
    // A ROUTER delivers whole messages: the other frames are there.
    const bool has_body = id.more() && body.receive(impl_->socket.get());
    bool more = has_body && body.more();
    const bool valid = has_body && !more;
    while (more) more = surplus.receive(impl_->socket.get()) && surplus.more();
    const int rank = rank_of(id.bytes(), impl_->world_size);
    if (valid && rank >= 0) return ReceivedMessage{rank, impl_->body.assign(body.bytes())};
  }
}

struct RankEndpoint::Impl {
  Socket socket{ZMQ_DEALER, kLastWordsLinger};
  AlignedBody body;
};

RankEndpoint::RankEndpoint(const std::string& address, int rank) : impl_(std::make_unique<Impl>()) {
  void* socket = impl_->socket.get();
  const std::string id = fmt::format("{}", rank);
  if (zmq_setsockopt(socket, ZMQ_ROUTING_ID, id.data(), id.size()) != 0)
    throw_zmq_error("ZMQ_ROUTING_ID");
  if (zmq_connect(socket, address.c_str()) != 0) throw_zmq_error("zmq_connect");
}

RankEndpoint::~RankEndpoint() = default;

void RankEndpoint::send(std::span<const std::byte> body) {
  check_size(body);
  if (send_frame(impl_->socket.get(), body, 0)) return;
  if (zmq_errno() == EAGAIN) throw_rank_error("the launcher does not read its messages");
  throw_zmq_error("zmq_send");
}

std::optional<ReceivedMessage> RankEndpoint::receive(milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  for (;;) {
    Frame body, surplus;
    if (body.receive(impl_->socket.get())) {
      bool more = body.more();
      const bool valid = !more;
      while (more) more = surplus.receive(impl_->socket.get()) && surplus.more();
      if (valid) return ReceivedMessage{-1, impl_->body.assign(body.bytes())};
      continue;
    }
    const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
    if (left.count() <= 0) return std::nullopt;
    zmq_pollitem_t item{.socket = impl_->socket.get(), .fd = 0, .events = ZMQ_POLLIN, .revents = 0};
    if (zmq_poll(&item, 1, left.count()) < 0 && zmq_errno() != EINTR) throw_zmq_error("zmq_poll");
  }
}

}  // namespace troupe::comm
