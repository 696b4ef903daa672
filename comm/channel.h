// comm/channel.h: the two ends of a window: a FIFO of chunks from one rank to another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/arena_layout.h"

namespace troupe::comm {

class Communicator;

// This rank's end towards `receiver`.
class SendChannel {
 public:
  SendChannel(Communicator& communicator, int receiver);

  // True when the receiver has given a slot back. RankError if its count is nonsense.
  bool has_room() const;
  // Where the next chunk is to be written, slot_bytes long. Only while has_room().
  std::byte* payload() const { return payloads_[published_ % kSlotsPerWindow]; }
  // Hands that chunk to the receiver and wakes it.
  void publish(const Arena::Slot& header);

 private:
  Communicator* communicator_;
  int receiver_;
  Arena::Window* window_;
  std::byte* payloads_[kSlotsPerWindow];
  uint64_t published_;  // the truth; the window holds a copy for the receiver
};

// This rank's end of what `sender` sends. Chunk i is the i-th unread one, i < unread().
class ReceiveChannel {
 public:
  ReceiveChannel(Communicator& communicator, int sender);

  // RankError if the sender's count is nonsense.
  uint64_t unread() const;
  // A copy: what has been checked cannot change any more.
  Arena::Slot header(uint64_t i) const { return window_->slots[slot(i)]; }
  const std::byte* payload(uint64_t i) const { return payloads_[slot(i)]; }
  // RankError, naming both calls, unless `got` is `expected`.
  void check(const Arena::Slot& got, const Arena::Slot& expected) const;
  // Gives the first `count` unread slots back to the sender.
  void consume(uint64_t count);

 private:
  uint64_t slot(uint64_t i) const { return (consumed_ + i) % kSlotsPerWindow; }

  Communicator* communicator_;
  int sender_;
  Arena::Window* window_;
  const std::byte* payloads_[kSlotsPerWindow];
  uint64_t consumed_;
};

}  // namespace troupe::comm
