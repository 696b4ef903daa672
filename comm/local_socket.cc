#include "comm/local_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/error.h"

namespace troupe::comm {

namespace {

constexpr int kBacklog = 64;

// A leading zero byte makes it an abstract name; its length is part of the name.
socklen_t set_address(sockaddr_un& address, const std::string& name) {
  address = {};
  address.sun_family = AF_UNIX;
  TROUPE_CHECK(name.size() + 1 < sizeof(address.sun_path), "{}", name);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

Fd make_socket(int type) {
  Fd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd) throw std::runtime_error(errno_text("socket"));
  return fd;
}

}  // namespace

Fd listen_local(const std::string& name, int type) {
  Fd fd = make_socket(type);
  sockaddr_un address;
  const socklen_t length = set_address(address, name);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (errno == EADDRINUSE) return {};
    throw std::runtime_error(errno_text("bind"));
  }
  if (::listen(fd.get(), kBacklog) != 0) throw std::runtime_error(errno_text("listen"));
  return fd;
}

Fd connect_local(const std::string& name, int type) {
  Fd fd = make_socket(type);
  sockaddr_un address;
  const socklen_t length = set_address(address, name);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) return {};
  return fd;
}

unsigned peer_uid(int fd) {
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
    throw std::runtime_error(errno_text("getsockopt(SO_PEERCRED)"));
  return peer.uid;
}

}  // namespace troupe::comm
