#include "launcher/status_server.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "comm/local_socket.h"

namespace troupe::launcher {
namespace {

constexpr int kMostLaunches = 64;  // of one process at a time
constexpr size_t kMostDescriptionBytes = size_t{128} << 10;
constexpr int kAnswerTimeoutMs = 5000;

std::string name_prefix() { return fmt::format("troupe-status-{}-", ::geteuid()); }

Fd listen_somewhere() {
  for (int i = 0; i < kMostLaunches; ++i) {
    const std::string name = fmt::format("{}{}-{}", name_prefix(), ::getpid(), i);
    if (Fd fd = comm::listen_local(name, SOCK_SEQPACKET)) return fd;
  }
  throw std::runtime_error("this process has too many launches");
}

}  // namespace

StatusServer::StatusServer(const comm::Arena& arena, std::string description)
    : description_(std::move(description)) {
  try {
    arena_ = Fd(::open(fmt::format("/proc/self/fd/{}", arena.fd()).c_str(), O_RDONLY | O_CLOEXEC));
    if (!arena_) throw std::runtime_error(errno_text("open of the arena"));
    listener_ = listen_somewhere();
    stop_ = Fd(::eventfd(0, EFD_CLOEXEC));
    if (!stop_) throw std::runtime_error(errno_text("eventfd"));
    thread_ = std::thread([this] { serve(); });
  } catch (const std::exception& error) {
    spdlog::warn("troupe status will not see this launch ({})", error.what());
  }
}

StatusServer::~StatusServer() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

void StatusServer::serve() const {
  std::array<pollfd, 2> events{{{.fd = listener_.get(), .events = POLLIN, .revents = 0},
                                {.fd = stop_.get(), .events = POLLIN, .revents = 0}}};
  for (;;) {
    if (::poll(events.data(), events.size(), -1) < 0 && errno != EINTR) return;
    if (events[1].revents != 0) return;
    if (events[0].revents == 0) continue;
    const Fd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (connection)
      answer(connection.get());
    else
      ::poll(&events[1], 1, 100);  // no descriptor is free: not again at once
  }
}

// Never waits for the other side: what does not fit its buffer is not sent.
void StatusServer::answer(int connection) const {
  const uid_t uid = comm::peer_uid(connection);
  if (uid != ::geteuid() && uid != 0) return;
  iovec text{const_cast<char*>(description_.data()), description_.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &text;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  const int fd = arena_.get();
  std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  ::sendmsg(connection, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

std::vector<LaunchAddress> find_launches() {
  const std::string prefix = fmt::format("@{}", name_prefix());
  std::vector<LaunchAddress> launches;
  std::ifstream sockets("/proc/net/unix");
  for (std::string line; std::getline(sockets, line);) {
    const size_t at = line.find(prefix);
    if (at == std::string::npos || line.find(" 00010000 ") == std::string::npos) continue;
    const char* digits = line.data() + at + prefix.size();
    LaunchAddress address{.pid = 0, .name = line.substr(at + 1)};
    const auto [end, error] = std::from_chars(digits, line.data() + line.size(), address.pid);
    if (error == std::errc{} && *end == '-') launches.push_back(address);
  }
  return launches;
}

LaunchDescription ask_launch(const LaunchAddress& address) {
  const Fd fd = comm::connect_local(address.name, SOCK_SEQPACKET);
  if (!fd) throw_user_error("launch {} has just ended ({})", address.pid, errno_text("connect"));
  if (const uid_t uid = comm::peer_uid(fd.get()); uid != ::geteuid())
    throw_user_error("launch {} is a process of user {}, who pretends to be this one", address.pid,
                     uid);

  std::string text(kMostDescriptionBytes, '\0');
  iovec buffer{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  pollfd event{.fd = fd.get(), .events = POLLIN, .revents = 0};
  const ssize_t received = ::poll(&event, 1, kAnswerTimeoutMs) == 1
                               ? ::recvmsg(fd.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)
                               : -1;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (received <= 0 || header == nullptr || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int)))
    throw_user_error("launch {} does not answer; it may just be ending", address.pid);
  int arena = -1;
  std::memcpy(&arena, CMSG_DATA(header), sizeof(arena));
  text.resize(static_cast<size_t>(received));
  return {std::move(text), Fd(arena)};
}

}  // namespace troupe::launcher
