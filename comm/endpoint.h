// comm/endpoint.h: control messages between the launcher and its ranks, over ZeroMQ.
//
// One ROUTER in the launcher, one DEALER per rank, on an ipc socket in the abstract namespace of
// Linux ("ipc://@troupe-<128 random bits>"): it has no name in any file system, so nothing is left
// behind however a process dies; connections of another user id are refused by the socket. Messages
// are bytes to this folder; actors/ verifies and reads them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace troupe::comm {

struct ReceivedMessage {
  int from_rank = -1;               // launcher side: who sent it; rank side: -1
  std::span<const std::byte> body;  // 16-byte aligned; valid until the next receive
};

// The launcher's end.
class LauncherEndpoint {
 public:
  explicit LauncherEndpoint(int world_size);  // binds to a fresh random address
  ~LauncherEndpoint();

  const std::string& address() const { return address_; }
  // Readable when a message may have arrived (edge-triggered, as ZMQ_FD is: call receive until it
  // returns nothing before polling again, also after a send, which may swallow the edge).
  int poll_fd() const;

  // Never blocks. Throws RankError if `rank` has not connected.
  void send(int rank, std::span<const std::byte> body);
  // The next message, if there is one. Messages of unknown senders are dropped.
  std::optional<ReceivedMessage> receive();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::string address_;
};

// A rank's end. Connects as identity `rank`; send a first message so that the launcher knows it.
class RankEndpoint {
 public:
  RankEndpoint(const std::string& address, int rank);
  ~RankEndpoint();

  void send(std::span<const std::byte> body);
  // Blocks until a message arrives; nothing when `timeout` passes first.
  std::optional<ReceivedMessage> receive(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::comm
