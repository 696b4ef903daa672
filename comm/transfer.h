// comm/transfer.h: collectives on their way, moved a chunk at a time wherever there is room.
//
// A Transfer is one collective of this rank: what goes to and comes from each peer, in one phase or
// two (all_reduce of long vectors: reduce-scatter, then all-gather). What goes alike to all peers
// is written once, into this rank's outbox, and read there by all of them; the rest is written into
// the window of the one that needs it. The TransferQueue holds the transfers in flight in the order
// of their start and drives all of them while any is waited for, sends and receives interleaved, so
// that two ranks that send long messages to each other both advance.
//
// Channels are FIFOs, so a channel carries transfers in the order of their start: a later one may
// use a channel only when every earlier one has finished with it, and the outbox only when every
// earlier one has sent everything. All ranks start collectives in one order, so the earliest
// unfinished one finds slots held only by collectives that are complete: it can always move, and
// nothing deadlocks.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/channel.h"
#include "comm/process_group.h"

namespace troupe::comm {

class Transfer {
 public:
  // ranks: the group's world ranks; order: the other group ranks, in the order they are served.
  Transfer(TransferQueue& queue, std::span<const int> ranks, int rank, std::span<const int> order);

  // A message to or from one peer alone, or the same to all.
  enum class Kind { kToOne, kToAll };

  // Building one, between two uses of the same object. A message of no bytes is still a message.
  // bytes: of this rank's larger buffer, for the flight recorder.
  void begin(Operation operation, uint32_t group, uint64_t sequence, DataType element,
             uint64_t bytes);
  void send(int peer, std::span<const std::byte> data);  // in phase 0
  // own_copy: also copied there, where every byte is read once; may be null, or data itself.
  void send_to_all(int phase, std::span<const std::byte> data, std::byte* own_copy = nullptr);
  void receive(int phase, int peer, std::span<std::byte> data, Kind kind);
  // In place of phase 0's receives: a message as long as `own` from every peer, all summed by
  // tree_sum into `result`. What phase 1 sends is sent as far as it is summed. kToAll: `result` is
  // also what phase 0 sends, overwritten behind the sends.
  void reduce(std::span<const std::byte> own, std::byte* result, Kind kind);
  // Copied when the first chunks are on their way.
  void copy(std::span<const std::byte> from, std::byte* to);
  // Complete without having moved anything; before it is started.
  void cancel() { unfinished_ = 0; }

  bool complete() const { return unfinished_ == 0; }
  // While the comm thread has it, nobody else looks at it.
  bool in_use() const { return handed_over_.load(std::memory_order_acquire) || !complete(); }
  void set_handed_over(bool value) { handed_over_.store(value, std::memory_order_release); }
  uint64_t sequence() const { return header_.sequence; }
  uint64_t bytes() const { return bytes_; }
  const Arena::Slot& call() const { return header_; }
  std::span<const int> ranks() const { return ranks_; }
  TransferQueue& queue() const { return queue_; }

 private:
  friend class TransferQueue;
  // One message. `moved` bytes of it are sent or received.
  template <class Byte>
  struct Message {
    Byte* data = nullptr;
    uint64_t bytes = 0;
    uint64_t moved = 0;
    bool done = true;
    Kind kind = Kind::kToOne;
  };

  // Moves what can be moved without waiting; true if anything was.
  bool progress();
  bool send_all_that_fits();
  bool send_to_one(int peer);
  bool send_to_all(int phase);
  void copy_own();
  bool receive_from(int peer);
  bool reduce_chunks();
  bool reducible(uint64_t offset, uint64_t chunk) const;
  Arena::Slot chunk_header(Kind kind, int phase, uint64_t total, uint64_t offset) const;
  // The next chunk of `channel`, which must be `expected`; where it lies is the sender's choice.
  Arena::Slot checked(const ReceiveChannel& channel, Arena::Slot expected, Kind kind) const;
  Arena::Slot expected_from(int world_rank) const;

  // A peer whose next message has not come; -1 if there is none.
  int missing_world_rank() const;
  // A peer that has not made room for what is to be sent; -1 if there is none.
  int full_world_rank() const;
  bool has_message_of_several_chunks() const { return several_chunks_; }
  int group_rank(int world_rank) const;  // -1: not in the group
  bool owes(int world_rank) const;
  bool expects_from(int world_rank) const;

  TransferQueue& queue_;
  std::span<const int> ranks_;
  int rank_;
  std::span<const int> order_;
  uint64_t chunk_bytes_[2];  // by Kind
  Arena::Slot header_;       // what all chunks of all phases have in common
  uint64_t bytes_ = 0;
  std::vector<Message<const std::byte>> to_one_;       // [group size]
  std::array<Message<const std::byte>, 2> to_all_;     // [phase]
  std::array<std::vector<Message<std::byte>>, 2> in_;  // [phase][group size]
  int unfinished_ = 0;                                 // messages, and the reduction
  std::atomic<bool> handed_over_{false};
  bool several_chunks_ = false;

  std::byte* own_copy_ = nullptr;  // of to_all_[0]
  std::span<const std::byte> copy_from_;
  std::byte* copy_to_ = nullptr;

  bool reducing_ = false;
  Kind reduced_kind_ = Kind::kToOne;
  std::span<const std::byte> own_;
  std::byte* result_ = nullptr;
  uint64_t reduced_ = 0;                   // bytes of result_ that are final
  std::vector<const std::byte*> sources_;  // [group size] scratch of reduce_chunks
};

class TransferQueue {
 public:
  explicit TransferQueue(Communicator& communicator);

  SendChannel& to(int world_rank) { return to_[world_rank]; }
  ReceiveChannel& from(int world_rank) { return from_[world_rank]; }
  Communicator& communicator() const { return communicator_; }

  // Puts a built transfer in flight and moves what can be moved without waiting.
  void start(Transfer& transfer);
  void wait(Transfer& transfer);
  // Forgets a transfer whose buffers may be gone; if it was not complete, this rank is out of step
  // with the others and every later call throws.
  void abandon(Transfer& transfer) noexcept;

  // Returns when all of `ranks` have come to this call. No chunks: a count at each peer.
  void barrier(const Arena::Slot& call, std::span<const int> ranks, std::span<const int> order);

  // For exchanges that use the windows themselves: the channels to and from `ranks` are theirs
  // until give_back; transfers that were started before are completed first.
  void take(std::span<const int> ranks);
  void give_back(std::span<const int> ranks);
  void wait_until_read(int world_rank);  // everything this rank has sent it
  void wait_for_unread(int world_rank, uint64_t count);

 private:
  friend class Transfer;
  // What the chunk in an outbox slot was published as, to one of its readers.
  struct OutboxReader {
    int world_rank;
    uint64_t published;
  };

  // Who holds up the transfers in flight, foremost `transfer`: whose chunk is missing, and for
  // which transfer; who has not made room. World ranks, -1 nobody.
  struct Holdup {
    int missing = -1;
    const Transfer* waiting = nullptr;
    int full = -1;
    bool operator==(const Holdup&) const = default;
  };

  bool progress();
  Holdup holdup(const Transfer& transfer) const;
  void wait_for_any_movement(Transfer& transfer);
  void wait_on_channel(Condition ready, int world_rank);
  void wait_at_barrier(const Arena::Slot& call, int world_rank);
  bool is_at_barrier(const Arena::Slot& call, int world_rank);
  // RankError if that rank has come to a barrier that this one has not, and so will not send what
  // is expected of it.
  void check_not_at_barrier(int world_rank, const Arena::Slot& expected);
  // Runs `step`; if it throws, no transfer is driven any more.
  template <class Step>
  void guarded(const Step& step);
  void throw_if_broken() const;
  void check_not_taken(std::span<const int> ranks) const;

  bool may_send(int world_rank) const { return send_closed_[world_rank] != pass_; }
  bool may_receive(int world_rank) const { return receive_closed_[world_rank] != pass_; }
  void close_send(int world_rank) { send_closed_[world_rank] = pass_; }
  void close_receive(int world_rank) { receive_closed_[world_rank] = pass_; }

  // The outbox. put_in_outbox publishes the chunk that has been written to outbox_payload().
  int outbox_slot() const { return static_cast<int>(outbox_chunks_ % kSlotsPerWindow); }
  std::byte* outbox_payload() const { return outbox_[outbox_slot()]; }
  int outbox_holder() const;  // who has not read the slot's last chunk yet, -1 nobody
  void put_in_outbox(Arena::Slot header, std::span<const int> ranks, std::span<const int> order);
  bool may_use_outbox() const { return outbox_closed_ != pass_; }
  void close_outbox() { outbox_closed_ = pass_; }

  Communicator& communicator_;
  std::vector<SendChannel> to_;       // [world]
  std::vector<ReceiveChannel> from_;  // [world]
  std::vector<Transfer*> in_flight_;  // in the order of their start
  bool broken_ = false;
  std::vector<uint8_t> taken_;  // [world] by an exchange

  std::byte* outbox_[kSlotsPerWindow];
  uint64_t outbox_chunks_ = 0;
  std::vector<OutboxReader> outbox_readers_[kSlotsPerWindow];

  // A channel is closed to later transfers for the rest of the pass whose number stands here.
  uint64_t pass_ = 0;
  std::vector<uint64_t> send_closed_, receive_closed_;  // [world]
  uint64_t outbox_closed_ = 0;
};

}  // namespace troupe::comm
