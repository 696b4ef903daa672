// comm/transfer.h: collectives on their way, moved a chunk at a time wherever there is room.
//
// A Transfer is one collective of this rank: what goes to and comes from each peer, in one phase or
// two (all_reduce of long vectors: reduce-scatter, then all-gather). The TransferQueue holds those
// in flight in the order of their start and drives all of them while any is waited for, sends and
// receives interleaved, so that two ranks that send long messages to each other both advance.
//
// Channels are FIFOs, so a channel carries transfers in the order of their start: a later one may
// use a channel only when every earlier one has finished with it. All ranks start collectives in
// one order, so the earliest unfinished one can always move and nothing deadlocks.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/channel.h"
#include "comm/process_group.h"

namespace troupe::comm {

class Transfer {
 public:
  // ranks: the group's world ranks; order: the other group ranks, in the order they are served.
  Transfer(TransferQueue& queue, std::span<const int> ranks, int rank, std::span<const int> order);

  // Building one, between two uses of the same object. A message of no bytes is still a message.
  void begin(Operation operation, uint32_t group, uint64_t sequence, DataType element);
  void send(int phase, int peer, std::span<const std::byte> data);
  void receive(int phase, int peer, std::span<std::byte> data);
  // In place of phase 0's receives: a message as long as `own` from every peer, all summed by
  // tree_sum into `result`. What phase 1 sends is sent as far as it is summed.
  // result_is_sent: `result` is also what phase 0 sends to everybody, overwritten behind the sends.
  void reduce(std::span<const std::byte> own, std::byte* result, bool result_is_sent);

  bool complete() const { return unfinished_ == 0; }
  uint64_t sequence() const { return header_.sequence; }
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
  };
  struct Phase {
    std::vector<Message<const std::byte>> out;  // [group size]
    std::vector<Message<std::byte>> in;         // [group size]
  };

  // Moves what can be moved without waiting; true if anything was.
  bool progress();
  bool send_to(int peer);
  bool receive_from(int peer);
  bool reduce_chunks();
  bool reducible(uint64_t offset, uint64_t chunk) const;
  Arena::Slot chunk_header(int phase, uint64_t total, uint64_t offset) const;

  // A peer whose next message has not come; -1 if there is none.
  int missing_world_rank() const;
  // A peer that has not made room for what is to be sent; -1 if there is none.
  int full_world_rank() const;
  bool has_message_of_several_chunks() const { return several_chunks_; }

  TransferQueue& queue_;
  std::span<const int> ranks_;
  int rank_;
  std::span<const int> order_;
  uint64_t slot_bytes_;
  Arena::Slot header_;  // what all chunks of all phases have in common
  std::array<Phase, 2> phases_;
  int unfinished_ = 0;  // messages, and the reduction
  bool several_chunks_ = false;

  bool reducing_ = false;
  bool result_is_sent_ = false;
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

  // For exchanges that use the windows themselves: the channels to and from `ranks` are theirs
  // until give_back; transfers that were started before are completed first.
  void take(std::span<const int> ranks);
  void give_back(std::span<const int> ranks);
  void wait_for_room(int world_rank);
  void wait_for_unread(int world_rank, uint64_t count);

 private:
  friend class Transfer;
  bool progress();
  void wait_for_any_movement(Transfer& transfer);
  void wait_on_channel(const std::function<bool()>& ready, int world_rank);
  // Runs `step`; if it throws, no transfer is driven any more.
  template <class Step>
  void guarded(const Step& step);
  void throw_if_broken() const;

  bool may_send(int world_rank) const { return send_closed_[world_rank] != pass_; }
  bool may_receive(int world_rank) const { return receive_closed_[world_rank] != pass_; }
  void close_send(int world_rank) { send_closed_[world_rank] = pass_; }
  void close_receive(int world_rank) { receive_closed_[world_rank] = pass_; }

  Communicator& communicator_;
  std::vector<SendChannel> to_;       // [world]
  std::vector<ReceiveChannel> from_;  // [world]
  std::vector<Transfer*> in_flight_;  // in the order of their start
  bool broken_ = false;
  std::vector<uint8_t> taken_;  // [world] by an exchange

  // A channel is closed to later transfers for the rest of the pass whose number stands here.
  uint64_t pass_ = 0;
  std::vector<uint64_t> send_closed_, receive_closed_;  // [world]
};

}  // namespace troupe::comm
