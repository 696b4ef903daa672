// The transfers of a rank in flight, its channels, its outbox, and its barriers.
#include <algorithm>

#include "base/error.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

// Looks at a barrier before the fence that a ring needs: its cache miss and the peer's overlap.
constexpr int kBarrierLooks = 200;

}  // namespace

TransferQueue::TransferQueue(Communicator& communicator)
    : communicator_(communicator),
      taken_(communicator.world_size()),
      send_closed_(communicator.world_size()),
      receive_closed_(communicator.world_size()) {
  const int me = communicator.world_rank();
  for (int rank = 0; rank < communicator.world_size(); ++rank) {
    to_.emplace_back(communicator, rank);
    from_.emplace_back(communicator, rank);
  }
  for (int slot = 0; slot < static_cast<int>(kSlotsPerWindow); ++slot) {
    outbox_[slot] = communicator.arena().payload(me, me, slot);
    outbox_readers_[slot].reserve(communicator.world_size());
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

void TransferQueue::check_not_taken(std::span<const int> ranks) const {
  for (const int rank : ranks)
    TROUPE_CHECK(!taken_[rank], "a collective with rank {} inside a dispatch/combine round", rank);
}

void TransferQueue::start(Transfer& transfer) {
  guarded([&] {
    check_not_taken(transfer.ranks());
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
  if (!transfer.in_use()) return;
  if (communicator_.comm_thread() != nullptr) communicator_.abandon_comm_thread();
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

TransferQueue::Holdup TransferQueue::holdup(const Transfer& transfer) const {
  Holdup holdup{.missing = transfer.missing_world_rank(), .waiting = &transfer};
  for (const Transfer* other : in_flight_) {
    if (holdup.missing < 0) {
      holdup.missing = other->missing_world_rank();
      holdup.waiting = other;
    }
    if (holdup.full < 0) holdup.full = other->full_world_rank();
  }
  return holdup;
}

void TransferQueue::wait_for_any_movement(Transfer& transfer) {
  const Holdup held = holdup(transfer);
  if (held.missing < 0 && held.full < 0) return;  // something has come since the last pass
  const bool was_at_barrier = held.missing >= 0 && from(held.missing).is_at_barrier();
  if (held.missing >= 0)
    check_not_at_barrier(held.missing, held.waiting->expected_from(held.missing));
  if (in_flight_.size() == 1 && held.full < 0 && !transfer.has_message_of_several_chunks()) {
    // Nothing can be sent and nobody waits for room here: only the missing rank matters.
    const ReceiveChannel& channel = from(held.missing);
    const auto arrived = [&] {
      return channel.unread() > 0 || channel.is_at_barrier() != was_at_barrier;
    };
    communicator_.wait_until(arrived, held.missing, Communicator::WakeOn::kThatRank);
  } else {
    // Returns too when another rank holds it up: an error is to name the right one.
    const auto moved = [&] { return progress() || holdup(transfer) != held; };
    communicator_.wait_until(moved, held.missing >= 0 ? held.missing : held.full);
  }
}

// A rank may be at a later barrier while chunks of its handles are still to come: then it says so.
// One that has sent everything before the barrier and whose window is empty sends nothing more.
void TransferQueue::check_not_at_barrier(int world_rank, const Arena::Slot& expected) {
  const ReceiveChannel& channel = from(world_rank);
  if (!channel.is_at_barrier()) return;
  const Arena::Slot call = channel.barrier();
  const bool earlier = call.group == expected.group && call.sequence <= expected.sequence;
  if ((channel.owes_chunks() && !earlier) || channel.unread() > 0) return;
  channel.check(call, expected);
}

void TransferQueue::barrier(const Arena::Slot& call, std::span<const int> ranks,
                            std::span<const int> order) {
  guarded([&] {
    check_not_taken(ranks);
    for (const int peer : order) {
      const bool owes = std::any_of(in_flight_.begin(), in_flight_.end(),
                                    [&](const auto* other) { return other->owes(ranks[peer]); });
      to(ranks[peer]).come_to_barrier(call, owes);
    }
    for (int look = 0; communicator_.spins() && look < kBarrierLooks; ++look)
      if (std::all_of(order.begin(), order.end(),
                      [&](int peer) { return from(ranks[peer]).is_at_barrier(); }))
        break;
    Communicator::publication_fence();
    for (const int peer : order) communicator_.ring(ranks[peer]);
    for (const int peer : order) wait_at_barrier(call, ranks[peer]);
  });
}

void TransferQueue::wait_at_barrier(const Arena::Slot& call, int world_rank) {
  ReceiveChannel& channel = from(world_rank);
  if (!channel.is_at_barrier())
    communicator_.wait_until(
        [&] { return is_at_barrier(call, world_rank); }, world_rank,
        in_flight_.empty() ? Communicator::WakeOn::kThatRank : Communicator::WakeOn::kAnyRank);
  channel.check(channel.barrier(), call);
  channel.pass_barrier();
}

// Moves earlier transfers on meanwhile. A chunk that belongs to none of them comes from a rank that
// made another call instead.
bool TransferQueue::is_at_barrier(const Arena::Slot& call, int world_rank) {
  const ReceiveChannel& channel = from(world_rank);
  if (!in_flight_.empty()) progress();
  if (channel.is_at_barrier()) return true;
  const bool expects = std::any_of(in_flight_.begin(), in_flight_.end(), [&](const auto* transfer) {
    return transfer->expects_from(world_rank);
  });
  if (expects || channel.unread() == 0) return false;
  if (!channel.is_at_barrier()) channel.check(channel.header(0), call);
  return channel.is_at_barrier();
}

int TransferQueue::outbox_holder() const {
  for (const OutboxReader& reader : outbox_readers_[outbox_slot()])
    if (!to_[reader.world_rank].has_given_back(reader.published)) return reader.world_rank;
  return -1;
}

void TransferQueue::put_in_outbox(Arena::Slot header, std::span<const int> ranks,
                                  std::span<const int> order) {
  std::vector<OutboxReader>& readers = outbox_readers_[outbox_slot()];
  header.place = static_cast<uint16_t>(outbox_slot() + 1);
  readers.clear();
  for (const int peer : order) {
    SendChannel& channel = to(ranks[peer]);
    channel.put(header);
    communicator_.count_sent(ranks[peer], header.chunk_bytes);
    readers.push_back({ranks[peer], channel.published()});
  }
  ++outbox_chunks_;
  Communicator::publication_fence();
  for (const int peer : order) communicator_.ring(ranks[peer]);
}

void TransferQueue::take(std::span<const int> ranks) {
  for (const int rank : ranks)
    TROUPE_CHECK(!taken_[rank], "two dispatch/combine rounds with rank {} at once", rank);
  const auto shares_a_rank = [&](const Transfer* transfer) {
    return std::any_of(ranks.begin(), ranks.end(), [&](int rank) {
      return rank != communicator_.world_rank() && transfer->group_rank(rank) >= 0;
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

void TransferQueue::wait_until_read(int world_rank) {
  const SendChannel& channel = to(world_rank);
  wait_on_channel([&] { return channel.has_given_back(channel.published()); }, world_rank);
}

void TransferQueue::wait_for_unread(int world_rank, uint64_t count) {
  const auto ready = [&] {
    if (from(world_rank).unread() >= count) return true;
    const ActivitySnapshot here = communicator_.arena().snapshot(communicator_.world_rank());
    check_not_at_barrier(
        world_rank, {.operation = here.operation, .group = here.group, .sequence = here.sequence});
    return false;
  };
  wait_on_channel(ready, world_rank);
}

void TransferQueue::wait_on_channel(Condition ready, int world_rank) {
  guarded([&] {
    while (!ready()) {
      if (in_flight_.empty()) {
        communicator_.wait_until(ready, world_rank, Communicator::WakeOn::kThatRank);
      } else {
        const auto moved = [&] { return progress() || ready(); };
        communicator_.wait_until(moved, world_rank);
      }
    }
  });
}

}  // namespace troupe::comm
