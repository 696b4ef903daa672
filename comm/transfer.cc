#include "comm/transfer.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/tree_sum.h"

namespace troupe::comm {
namespace {

// Chunks are this long at most, so that slots stay in the caches while rows stream through them:
// two ranks gather 1 MiB in a quarter of the time that slots of 4 MiB take.
constexpr uint64_t kChunkBytes = uint64_t{256} << 10;
// Messages to one rank each need a slot at every peer: together they are to stay there too.
constexpr uint64_t kChunkBytesOfAllPeers = uint64_t{1} << 20;
constexpr uint64_t kMinChunkBytes = uint64_t{16} << 10;

uint64_t to_one_chunk(size_t num_peers) {
  const uint64_t share = kChunkBytesOfAllPeers / std::max<size_t>(num_peers, 1);
  return std::clamp(share / kCacheLine * kCacheLine, kMinChunkBytes, kChunkBytes);
}

}  // namespace

Transfer::Transfer(TransferQueue& queue, std::span<const int> ranks, int rank,
                   std::span<const int> order)
    : queue_(queue),
      ranks_(ranks),
      rank_(rank),
      order_(order),
      to_one_(ranks.size()),
      in_{std::vector<Message<std::byte>>(ranks.size()),
          std::vector<Message<std::byte>>(ranks.size())},
      sources_(ranks.size()) {
  const uint64_t slot_bytes = queue.communicator().arena().shape().slot_bytes();
  chunk_bytes_[static_cast<int>(Kind::kToOne)] = std::min(slot_bytes, to_one_chunk(order.size()));
  chunk_bytes_[static_cast<int>(Kind::kToAll)] = std::min(slot_bytes, kChunkBytes);
}

void Transfer::begin(Operation operation, uint32_t group, uint64_t sequence, DataType element,
                     uint64_t bytes) {
  TROUPE_CHECK(!in_use());
  header_ = {.operation = operation, .group = group, .sequence = sequence};
  header_.element = static_cast<uint16_t>(element);
  if (operation == Operation::kBarrier) header_.counts[0] = kStartedBarrier;
  bytes_ = bytes;
  several_chunks_ = false;
  reducing_ = false;
  own_copy_ = nullptr;
  copy_to_ = nullptr;
}

void Transfer::send(int peer, std::span<const std::byte> data) {
  to_one_[peer] = {.data = data.data(), .bytes = data.size(), .moved = 0, .done = false};
  ++unfinished_;
}

void Transfer::send_to_all(int phase, std::span<const std::byte> data, std::byte* own_copy) {
  if (order_.empty()) return copy(data, own_copy);
  to_all_[phase] = {
      .data = data.data(), .bytes = data.size(), .moved = 0, .done = false, .kind = Kind::kToAll};
  own_copy_ = own_copy == data.data() ? nullptr : own_copy;
  ++unfinished_;
}

void Transfer::receive(int phase, int peer, std::span<std::byte> data, Kind kind) {
  in_[phase][peer] = {
      .data = data.data(), .bytes = data.size(), .moved = 0, .done = false, .kind = kind};
  several_chunks_ |= data.size() > chunk_bytes_[static_cast<int>(kind)];
  ++unfinished_;
}

void Transfer::reduce(std::span<const std::byte> own, std::byte* result, Kind kind) {
  reducing_ = true;
  reduced_kind_ = kind;
  own_ = own;
  result_ = result;
  reduced_ = 0;
  several_chunks_ |= own.size() > chunk_bytes_[static_cast<int>(kind)];
  ++unfinished_;
}

void Transfer::copy(std::span<const std::byte> from, std::byte* to) {
  if (to == nullptr || from.empty() || from.data() == to) return;
  copy_from_ = from;
  copy_to_ = to;
}

bool Transfer::progress() {
  bool moved = send_all_that_fits();
  copy_own();
  if (reducing_) moved |= reduce_chunks();
  for (const int peer : order_) moved |= receive_from(peer);
  return moved;
}

void Transfer::copy_own() {
  if (std::byte* to = std::exchange(copy_to_, nullptr); to != nullptr)
    std::memmove(to, copy_from_.data(), copy_from_.size());
}

Arena::Slot Transfer::chunk_header(Kind kind, int phase, uint64_t total, uint64_t offset) const {
  Arena::Slot header = header_;
  header.phase = static_cast<uint32_t>(phase);
  header.total_bytes = total;
  header.offset = offset;
  header.chunk_bytes = std::min(chunk_bytes_[static_cast<int>(kind)], total - offset);
  return header;
}

// Everything to single peers, then phase 0's to all, then phase 1's.
bool Transfer::send_all_that_fits() {
  bool moved = false, all_sent = true;
  for (const int peer : order_) {
    moved |= send_to_one(peer);
    all_sent &= to_one_[peer].done;
  }
  for (int phase = 0; phase < 2; ++phase) {
    if (all_sent) moved |= send_to_all(phase);
    all_sent &= to_all_[phase].done;
  }
  if (all_sent) return moved;
  queue_.close_outbox();
  for (const int peer : order_)
    if (!to_one_[peer].done || !to_all_[0].done || !to_all_[1].done)
      queue_.close_send(ranks_[peer]);
  return moved;
}

bool Transfer::send_to_one(int peer) {
  auto& out = to_one_[peer];
  const int world_rank = ranks_[peer];
  SendChannel& channel = queue_.to(world_rank);
  bool moved = false;
  while (!out.done && queue_.may_send(world_rank) && channel.has_room()) {
    const Arena::Slot header = chunk_header(Kind::kToOne, 0, out.bytes, out.moved);
    if (header.chunk_bytes > 0)
      std::memcpy(channel.payload(), out.data + out.moved, header.chunk_bytes);
    channel.publish(header);
    queue_.communicator().count_sent(ranks_[peer], header.chunk_bytes);
    out.moved += header.chunk_bytes;
    out.done = out.moved == out.bytes;
    unfinished_ -= out.done;
    moved = true;
  }
  return moved;
}

bool Transfer::send_to_all(int phase) {
  auto& out = to_all_[phase];
  bool moved = false;
  while (!out.done && queue_.may_use_outbox()) {
    const Arena::Slot header = chunk_header(Kind::kToAll, phase, out.bytes, out.moved);
    const bool summed = phase == 0 || out.moved + header.chunk_bytes <= reduced_;
    const bool has_room = std::all_of(order_.begin(), order_.end(), [&](int peer) {
      return queue_.may_send(ranks_[peer]) && queue_.to(ranks_[peer]).has_room();
    });
    if (!summed || !has_room || queue_.outbox_holder() >= 0) break;
    if (header.chunk_bytes > 0)
      std::memcpy(queue_.outbox_payload(), out.data + out.moved, header.chunk_bytes);
    queue_.put_in_outbox(header, ranks_, order_);
    if (own_copy_ != nullptr && header.chunk_bytes > 0)
      std::memcpy(own_copy_ + out.moved, out.data + out.moved, header.chunk_bytes);
    out.moved += header.chunk_bytes;
    out.done = out.moved == out.bytes;
    unfinished_ -= out.done;
    moved = true;
  }
  return moved;
}

Arena::Slot Transfer::checked(const ReceiveChannel& channel, Arena::Slot expected,
                              Kind kind) const {
  const Arena::Slot got = channel.header(0);
  if (kind == Kind::kToAll && got.place >= 1 && got.place <= kSlotsPerWindow)
    expected.place = got.place;
  channel.check(got, expected);
  return got;
}

bool Transfer::receive_from(int peer) {
  const int world_rank = ranks_[peer];
  ReceiveChannel& channel = queue_.from(world_rank);
  bool moved = false;
  for (int phase = 0; phase < 2; ++phase) {
    auto& in = in_[phase][peer];
    while (!in.done || reducing_) {
      if (reducing_ || !queue_.may_receive(world_rank) || channel.unread() == 0) {
        queue_.close_receive(world_rank);
        return moved;
      }
      const Arena::Slot header =
          checked(channel, chunk_header(in.kind, phase, in.bytes, in.moved), in.kind);
      if (header.chunk_bytes > 0)
        std::memcpy(in.data + in.moved, channel.payload(0, header), header.chunk_bytes);
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
  const auto& out = to_all_[0];
  if (reduced_kind_ == Kind::kToAll && !out.done && out.moved < offset + chunk) return false;
  return std::all_of(order_.begin(), order_.end(), [&](int peer) {
    return queue_.may_receive(ranks_[peer]) && queue_.from(ranks_[peer]).unread() > 0;
  });
}

// Adds straight from the windows and outboxes.
bool Transfer::reduce_chunks() {
  bool moved = false;
  while (reducing_) {
    const Arena::Slot header = chunk_header(reduced_kind_, 0, own_.size(), reduced_);
    if (!reducible(reduced_, header.chunk_bytes)) return moved;
    sources_[rank_] = own_.data() + reduced_;
    for (const int peer : order_) {
      const ReceiveChannel& channel = queue_.from(ranks_[peer]);
      sources_[peer] = channel.payload(0, checked(channel, header, reduced_kind_));
    }
    tree_sum(static_cast<DataType>(header_.element), sources_, result_ + reduced_,
             header.chunk_bytes);
    for (const int peer : order_) queue_.from(ranks_[peer]).give_back(1);
    Communicator::publication_fence();
    for (const int peer : order_) queue_.from(ranks_[peer]).ring_for_room(1);
    reduced_ += header.chunk_bytes;
    reducing_ = reduced_ < own_.size();
    unfinished_ -= !reducing_;
    moved = true;
  }
  return moved;
}

Arena::Slot Transfer::expected_from(int world_rank) const {
  const int peer = group_rank(world_rank);
  if (reducing_) return chunk_header(reduced_kind_, 0, own_.size(), reduced_);
  const int phase = in_[0][peer].done ? 1 : 0;
  const auto& in = in_[phase][peer];
  return chunk_header(in.kind, phase, in.bytes, in.moved);
}

int Transfer::missing_world_rank() const {
  for (const int peer : order_) {
    const bool expects = reducing_ || !in_[0][peer].done || !in_[1][peer].done;
    if (expects && queue_.from(ranks_[peer]).unread() == 0) return ranks_[peer];
  }
  return -1;
}

int Transfer::full_world_rank() const {
  const bool sends_to_all = !to_all_[0].done || (!to_all_[1].done && !reducing_);
  if (sends_to_all && queue_.outbox_holder() >= 0) return queue_.outbox_holder();
  for (const int peer : order_)
    if ((sends_to_all || !to_one_[peer].done) && !queue_.to(ranks_[peer]).has_room())
      return ranks_[peer];
  return -1;
}

int Transfer::group_rank(int world_rank) const {
  const auto found = std::find(ranks_.begin(), ranks_.end(), world_rank);
  return found == ranks_.end() ? -1 : static_cast<int>(found - ranks_.begin());
}

bool Transfer::owes(int world_rank) const {
  const int peer = group_rank(world_rank);
  return peer >= 0 && (!to_one_[peer].done || !to_all_[0].done || !to_all_[1].done);
}

bool Transfer::expects_from(int world_rank) const {
  const int peer = group_rank(world_rank);
  return peer >= 0 && (reducing_ || !in_[0][peer].done || !in_[1][peer].done);
}

}  // namespace troupe::comm
