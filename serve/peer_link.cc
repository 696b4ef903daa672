#include "serve/peer_link.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace troupe::serve {

namespace {

struct Header {
  uint32_t bytes, files;
};

// Of messages that the other side does not take: more than all its requests can have to say.
constexpr size_t kMostWaiting = size_t{256} << 20;
constexpr size_t kReadBytes = size_t{64} << 10;

using Control = std::array<char, CMSG_SPACE(PeerLink::kMostFiles * sizeof(int))>;

}  // namespace

PeerLink::PeerLink(Fd socket) : socket_(std::move(socket)) {
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  TROUPE_CHECK(::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) == 0, "{}", errno_text("fcntl"));
}

void PeerLink::send(std::span<const uint8_t> message, std::span<const int> files) {
  if (broken_) return;
  TROUPE_CHECK(message.size() <= kMostBytes && files.size() <= kMostFiles, "{} bytes, {} files",
               message.size(), files.size());
  const Header header{static_cast<uint32_t>(message.size()), static_cast<uint32_t>(files.size())};
  Frame frame;
  frame.bytes.resize(sizeof(header) + message.size());
  std::memcpy(frame.bytes.data(), &header, sizeof(header));
  std::memcpy(frame.bytes.data() + sizeof(header), message.data(), message.size());
  for (const int file : files) {
    frame.files.emplace_back(::fcntl(file, F_DUPFD_CLOEXEC, 0));
    if (!frame.files.back()) throw std::runtime_error(errno_text("fcntl(F_DUPFD_CLOEXEC)"));
  }
  outgoing_bytes_ += frame.bytes.size();
  outgoing_.push_back(std::move(frame));
  write_more();
  if (outgoing_bytes_ > kMostWaiting) broken_ = true;
}

void PeerLink::write_more() {
  while (!broken_ && !outgoing_.empty() && write_frame(outgoing_.front())) {
    outgoing_bytes_ -= outgoing_.front().bytes.size();
    outgoing_.pop_front();
  }
}

// True when all of it has gone. Descriptors go with the first byte.
bool PeerLink::write_frame(Frame& frame) {
  while (frame.sent < frame.bytes.size()) {
    iovec part{frame.bytes.data() + frame.sent, frame.bytes.size() - frame.sent};
    alignas(cmsghdr) Control control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (frame.sent == 0 && !frame.files.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(frame.files.size() * sizeof(int));
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(frame.files.size() * sizeof(int));
      std::array<int, kMostFiles> numbers{};
      for (size_t i = 0; i < frame.files.size(); ++i) numbers[i] = frame.files[i].get();
      std::memcpy(CMSG_DATA(header), numbers.data(), frame.files.size() * sizeof(int));
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      if (errno != EAGAIN && errno != EWOULDBLOCK) broken_ = true;
      return false;
    }
    frame.sent += static_cast<size_t>(sent);
  }
  return true;
}

void PeerLink::read_more(const OnMessage& on_message) {
  while (!broken_ && receive_some()) hand_over(on_message);
}

// False when there is no more for now.
bool PeerLink::receive_some() {
  const size_t before = incoming_.size();
  incoming_.resize(before + kReadBytes);
  iovec part{incoming_.data() + before, kReadBytes};
  alignas(cmsghdr) Control control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t received = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
  incoming_.resize(before + static_cast<size_t>(std::max<ssize_t>(0, received)));
  if (received < 0) {
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) broken_ = true;
    return false;
  }
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      incoming_files_.emplace_back(number);
    }
  }
  if (received == 0) broken_ = true;
  return received > 0;
}

void PeerLink::hand_over(const OnMessage& on_message) {
  size_t at = 0;
  while (!broken_ && incoming_.size() - at >= sizeof(Header)) {
    Header header;
    std::memcpy(&header, incoming_.data() + at, sizeof(header));
    if (header.bytes > kMostBytes || header.files > kMostFiles) {
      broken_ = true;
      break;
    }
    if (incoming_.size() - at - sizeof(header) < header.bytes) break;
    if (incoming_files_.size() < header.files) {
      broken_ = true;
      break;
    }
    std::vector<Fd> files;
    for (uint32_t i = 0; i < header.files; ++i) {
      files.push_back(std::move(incoming_files_.front()));
      incoming_files_.pop_front();
    }
    // A copy, aligned as FlatBuffers wants it.
    const uint8_t* begin = incoming_.data() + at + sizeof(header);
    const std::vector<uint8_t> message(begin, begin + header.bytes);
    at += sizeof(header) + header.bytes;
    on_message(message, std::move(files));
  }
  incoming_.erase(incoming_.begin(), incoming_.begin() + static_cast<ptrdiff_t>(at));
}

}  // namespace troupe::serve
