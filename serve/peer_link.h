// serve/peer_link.h: frames of bytes and descriptors between a router and an instance, over a Unix
// stream socket.
//
//   0  bytes  of the message     4  descriptors  that come with it, at most kMostFiles
//   8  the message
//
// Never waits: what does not fit the socket is kept until it does. One thread uses it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"

namespace troupe::serve {

class PeerLink {
 public:
  static constexpr uint32_t kMostBytes = uint32_t{64} << 20;  // of a message
  static constexpr uint32_t kMostFiles = 2;

  explicit PeerLink(Fd socket);

  int fd() const { return socket_.get(); }
  bool wants_to_write() const { return !outgoing_.empty(); }
  bool broken() const { return broken_; }  // the other side has gone, or does not read, or lies
  void close() { broken_ = true; }

  // `files` are copied.
  void send(std::span<const uint8_t> message, std::span<const int> files = {});
  void write_more();
  // Hands over each whole message that has come.
  using OnMessage = std::function<void(std::span<const uint8_t> message, std::vector<Fd> files)>;
  void read_more(const OnMessage& on_message);

 private:
  struct Frame {
    std::vector<uint8_t> bytes;
    size_t sent = 0;
    std::vector<Fd> files;
  };
  bool write_frame(Frame& frame);
  bool receive_some();
  void hand_over(const OnMessage& on_message);

  Fd socket_;
  bool broken_ = false;
  std::deque<Frame> outgoing_;
  size_t outgoing_bytes_ = 0;
  std::vector<uint8_t> incoming_;
  std::deque<Fd> incoming_files_;
};

}  // namespace troupe::serve
