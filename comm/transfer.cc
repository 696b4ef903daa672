#include "comm/transfer.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "comm/tree_sum.h"

namespace troupe::comm {

Transfer::Transfer(TransferQueue& queue, std::span<const int> ranks, int rank,
                   std::span<const int> order)
    : queue_(queue),
      ranks_(ranks),
      rank_(rank),
      order_(order),
      slot_bytes_(queue.communicator().arena().shape().slot_bytes()),
      sources_(ranks.size()) {
  for (Phase& phase : phases_) {
    phase.out.resize(ranks.size());
    phase.in.resize(ranks.size());
  }
}

void Transfer::begin(Operation operation, uint32_t group, uint64_t sequence, DataType element) {
  TROUPE_CHECK(complete());
  header_ = {.operation = operation, .group = group, .sequence = sequence};
  header_.element = static_cast<uint32_t>(element);
  several_chunks_ = false;
  reducing_ = false;
}

void Transfer::send(int phase, int peer, std::span<const std::byte> data) {
  phases_[phase].out[peer] = {.data = data.data(), .bytes = data.size(), .moved = 0, .done = false};
  ++unfinished_;
}

void Transfer::receive(int phase, int peer, std::span<std::byte> data) {
  phases_[phase].in[peer] = {.data = data.data(), .bytes = data.size(), .moved = 0, .done = false};
  several_chunks_ |= data.size() > slot_bytes_;
  ++unfinished_;
}

void Transfer::reduce(std::span<const std::byte> own, std::byte* result, bool result_is_sent) {
  reducing_ = true;
  result_is_sent_ = result_is_sent;
  own_ = own;
  result_ = result;
  reduced_ = 0;
  several_chunks_ |= own.size() > slot_bytes_;
  ++unfinished_;
}

bool Transfer::progress() {
  bool moved = false;
  for (const int peer : order_) moved |= send_to(peer);
  if (reducing_) moved |= reduce_chunks();
  for (const int peer : order_) moved |= receive_from(peer);
  return moved;
}

Arena::Slot Transfer::chunk_header(int phase, uint64_t total, uint64_t offset) const {
  Arena::Slot header = header_;
  header.phase = static_cast<uint32_t>(phase);
  header.total_bytes = total;
  header.offset = offset;
  header.chunk_bytes = std::min(slot_bytes_, total - offset);
  return header;
}

bool Transfer::send_to(int peer) {
  const int world_rank = ranks_[peer];
  if (!queue_.may_send(world_rank)) return false;
  SendChannel& channel = queue_.to(world_rank);
  bool moved = false;
  for (int phase = 0; phase < 2; ++phase) {
    auto& out = phases_[phase].out[peer];
    while (!out.done) {
      const Arena::Slot header = chunk_header(phase, out.bytes, out.moved);
      const bool summed = phase == 0 || out.moved + header.chunk_bytes <= reduced_;
      if (!summed || !channel.has_room()) {
        queue_.close_send(world_rank);
        return moved;
      }
      if (header.chunk_bytes > 0)
        std::memcpy(channel.payload(), out.data + out.moved, header.chunk_bytes);
      channel.publish(header);
      queue_.communicator().count_sent(header.chunk_bytes);
      out.moved += header.chunk_bytes;
      out.done = out.moved == out.bytes;
      unfinished_ -= out.done;
      moved = true;
    }
  }
  return moved;
}

bool Transfer::receive_from(int peer) {
  const int world_rank = ranks_[peer];
  if (!queue_.may_receive(world_rank)) return false;
  ReceiveChannel& channel = queue_.from(world_rank);
  bool moved = false;
  for (int phase = 0; phase < 2; ++phase) {
    auto& in = phases_[phase].in[peer];
    while (!in.done || reducing_) {
      if (reducing_ || channel.unread() == 0) {
        queue_.close_receive(world_rank);
        return moved;
      }
      const Arena::Slot header = chunk_header(phase, in.bytes, in.moved);
      channel.check(channel.header(0), header);
      if (header.chunk_bytes > 0)
        std::memcpy(in.data + in.moved, channel.payload(0), header.chunk_bytes);
      channel.consume(1);
      in.moved += header.chunk_bytes;
      in.done = in.moved == in.bytes;
      unfinished_ -= in.done;
      moved = true;
    }
  }
  return moved;
}

// True when every peer's chunk at `offset` is here and the result may be written.
bool Transfer::reducible(uint64_t offset, uint64_t chunk) const {
  return std::all_of(order_.begin(), order_.end(), [&](int peer) {
    const auto& out = phases_[0].out[peer];
    if (result_is_sent_ && !out.done && out.moved < offset + chunk) return false;
    return queue_.may_receive(ranks_[peer]) && queue_.from(ranks_[peer]).unread() > 0;
  });
}

// Adds straight from the windows.
bool Transfer::reduce_chunks() {
  bool moved = false;
  while (reducing_) {
    const Arena::Slot header = chunk_header(0, own_.size(), reduced_);
    if (!reducible(reduced_, header.chunk_bytes)) return moved;
    sources_[rank_] = own_.data() + reduced_;
    for (const int peer : order_) {
      ReceiveChannel& channel = queue_.from(ranks_[peer]);
      channel.check(channel.header(0), header);
      sources_[peer] = channel.payload(0);
    }
    tree_sum(static_cast<DataType>(header_.element), sources_, result_ + reduced_,
             header.chunk_bytes);
    for (const int peer : order_) queue_.from(ranks_[peer]).consume(1);
    reduced_ += header.chunk_bytes;
    reducing_ = reduced_ < own_.size();
    unfinished_ -= !reducing_;
    moved = true;
  }
  return moved;
}

int Transfer::missing_world_rank() const {
  for (const int peer : order_) {
    const bool expects = reducing_ || !phases_[0].in[peer].done || !phases_[1].in[peer].done;
    if (expects && queue_.from(ranks_[peer]).unread() == 0) return ranks_[peer];
  }
  return -1;
}

int Transfer::full_world_rank() const {
  for (const int peer : order_) {
    const bool sends = !phases_[0].out[peer].done || !phases_[1].out[peer].done;
    if (sends && !queue_.to(ranks_[peer]).has_room()) return ranks_[peer];
  }
  return -1;
}

TransferQueue::TransferQueue(Communicator& communicator)
    : communicator_(communicator),
      taken_(communicator.world_size()),
      send_closed_(communicator.world_size()),
      receive_closed_(communicator.world_size()) {
  for (int rank = 0; rank < communicator.world_size(); ++rank) {
    to_.emplace_back(communicator, rank);
    from_.emplace_back(communicator, rank);
  }
}

template <class Step>
void TransferQueue::guarded(const Step& step) {
  throw_if_broken();
  try {
    step();
  } catch (...) {
    broken_ = true;
    in_flight_.clear();
    throw;
  }
}

void TransferQueue::throw_if_broken() const {
  if (broken_)
    throw RankError(communicator_.error_text(
        "an earlier collective of this rank failed or was abandoned; it cannot communicate"));
}

void TransferQueue::start(Transfer& transfer) {
  guarded([&] {
    for (const int rank : transfer.ranks())
      TROUPE_CHECK(!taken_[rank], "a collective with rank {} inside a dispatch/combine round",
                   rank);
    in_flight_.push_back(&transfer);
    progress();
  });
}

void TransferQueue::wait(Transfer& transfer) {
  guarded([&] {
    while (!transfer.complete())
      if (!progress()) wait_for_any_movement(transfer);
  });
}

void TransferQueue::abandon(Transfer& transfer) noexcept {
  if (transfer.complete() || broken_) return;
  broken_ = true;
  in_flight_.clear();
}

// One pass over everything in flight, earlier transfers first.
bool TransferQueue::progress() {
  ++pass_;
  bool moved = false;
  for (Transfer* transfer : in_flight_) moved |= transfer->progress();
  std::erase_if(in_flight_, [](const Transfer* transfer) { return transfer->complete(); });
  return moved;
}

void TransferQueue::wait_for_any_movement(Transfer& transfer) {
  int missing = transfer.missing_world_rank();
  int full = -1;
  for (const Transfer* other : in_flight_) {
    if (missing < 0) missing = other->missing_world_rank();
    if (full < 0) full = other->full_world_rank();
  }
  if (missing < 0 && full < 0) return;  // something has come since the last pass
  if (in_flight_.size() == 1 && full < 0 && !transfer.has_message_of_several_chunks()) {
    // Nothing can be sent and nobody waits for room here: only the missing rank matters.
    const auto arrived = [&] { return from(missing).unread() > 0; };
    communicator_.wait_until(std::ref(arrived), missing, Communicator::WakeOn::kThatRank);
  } else {
    const auto moved = [&] { return progress(); };
    communicator_.wait_until(std::ref(moved), missing >= 0 ? missing : full);
  }
}

void TransferQueue::take(std::span<const int> ranks) {
  for (const int rank : ranks)
    TROUPE_CHECK(!taken_[rank], "two dispatch/combine rounds with rank {} at once", rank);
  const auto shares_a_rank = [&](const Transfer* transfer) {
    return std::any_of(ranks.begin(), ranks.end(), [&](int rank) {
      const auto theirs = transfer->ranks();
      return rank != communicator_.world_rank() &&
             std::find(theirs.begin(), theirs.end(), rank) != theirs.end();
    });
  };
  throw_if_broken();
  for (;;) {
    const auto found = std::find_if(in_flight_.begin(), in_flight_.end(), shares_a_rank);
    if (found == in_flight_.end()) break;
    wait(**found);
  }
  for (const int rank : ranks) taken_[rank] = rank != communicator_.world_rank();
}

void TransferQueue::give_back(std::span<const int> ranks) {
  for (const int rank : ranks) taken_[rank] = 0;
}

void TransferQueue::wait_for_room(int world_rank) {
  const auto ready = [&] { return to(world_rank).has_room(); };
  wait_on_channel(std::ref(ready), world_rank);
}

void TransferQueue::wait_for_unread(int world_rank, uint64_t count) {
  const auto ready = [&] { return from(world_rank).unread() >= count; };
  wait_on_channel(std::ref(ready), world_rank);
}

void TransferQueue::wait_on_channel(const std::function<bool()>& ready, int world_rank) {
  guarded([&] {
    while (!ready()) {
      if (in_flight_.empty()) {
        communicator_.wait_until(ready, world_rank, Communicator::WakeOn::kThatRank);
      } else {
        const auto moved = [&] { return progress() || ready(); };
        communicator_.wait_until(std::ref(moved), world_rank);
      }
    }
  });
}

}  // namespace troupe::comm
