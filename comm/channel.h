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
  // The payloads of all slots, one piece.
  std::byte* window() const { return payloads_[0]; }
  // Hands that chunk to the receiver and wakes it.
  void publish(const Arena::Slot& header);
  // The same without waking: for the caller to do, for several at once (Communicator::ring).
  void put(Arena::Slot header);
  uint64_t published() const { return published_; }
  // True when the receiver has given back the first `count` chunks ever published.
  bool has_given_back(uint64_t count) const;

  // Says that this rank has come to a barrier; owes: chunks of earlier collectives are still to
  // follow. Does not wake.
  void come_to_barrier(const Arena::Slot& call, bool owes);

 private:
  void look_at_consumed() const;

  Communicator* communicator_;
  int receiver_;
  Arena::Window* window_;
  std::byte* payloads_[kSlotsPerWindow];
  uint64_t published_;         // the truth; the window holds a copy for the receiver
  mutable uint64_t consumed_;  // as last seen: reading the receiver's cache line is not free
  uint64_t barriers_;
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
  // The payload of a chunk with this header, in its slot or in the sender's outbox.
  const std::byte* payload(uint64_t i, const Arena::Slot& header) const {
    return header.place == 0 ? payload(i) : outbox_[(header.place - 1) % kSlotsPerWindow];
  }
  // The payloads of all slots, one piece: writable for exchanges that answer where they were asked.
  std::byte* window() const { return payloads_[0]; }
  // RankError, naming both calls, unless `got` is `expected`.
  void check(const Arena::Slot& got, const Arena::Slot& expected) const;
  // Gives the first `count` unread slots back to the sender.
  void consume(uint64_t count);
  // The same in two parts, with Communicator::publication_fence() between them.
  void give_back(uint64_t count);
  void ring_for_room(uint64_t count) const;

  // Whether the sender has come to a barrier that pass_barrier() has not been called for.
  bool is_at_barrier() const { return window_->barriers.load() != barriers_; }
  Arena::Slot barrier() const;  // which one
  bool owes_chunks() const;     // whether the sender said so there
  void pass_barrier();

 private:
  uint64_t slot(uint64_t i) const { return (consumed_ + i) % kSlotsPerWindow; }

  Communicator* communicator_;
  int sender_;
  Arena::Window* window_;
  std::byte* payloads_[kSlotsPerWindow];
  const std::byte* outbox_[kSlotsPerWindow];  // of the sender
  uint64_t consumed_;
  uint64_t barriers_;  // passed
};

}  // namespace troupe::comm
