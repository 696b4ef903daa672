// Each collective as the messages it consists of. Moving them is comm/transfer's work.
#include <algorithm>

#include "base/error.h"
#include "comm/process_group.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

// Up to this many bytes sent by a rank, an all_reduce sends everything to everybody: one wait
// instead of two, each of which costs a context switch when ranks outnumber cores.
constexpr size_t kDirectReduceBytes = size_t{256} << 10;

using Kind = Transfer::Kind;

template <class T>
constexpr DataType data_type();
template <>
constexpr DataType data_type<float>() {
  return DataType::kF32;
}
template <>
constexpr DataType data_type<Bf16>() {
  return DataType::kBf16;
}
template <>
constexpr DataType data_type<int8_t>() {
  return DataType::kInt8;
}

// Part `p` of `n` nearly equal ones.
template <class T>
std::span<T> part_of(std::span<T> data, int p, int n) {
  const size_t begin = data.size() * p / n;
  const size_t end = data.size() * (p + 1) / n;
  return data.subspan(begin, end - begin);
}

// data[displ, displ + bytes), checked.
template <class Byte>
std::span<Byte> checked_part(std::span<Byte> data, std::span<const int64_t> bytes,
                             std::span<const int64_t> displs, int peer) {
  const int64_t count = bytes[peer];
  const int64_t displ = displs[peer];
  const auto size = static_cast<int64_t>(data.size());
  TROUPE_CHECK(count >= 0 && displ >= 0 && displ <= size && count <= size - displ,
               "all_to_all_v: {} bytes at {} of {} for group rank {}", count, displ, size, peer);
  return data.subspan(displ, count);
}

}  // namespace

void ProcessGroup::barrier() {
  communicator_.wait_for_comm_thread();
  const Arena::Slot call{
      .operation = Operation::kBarrier, .group = id_, .sequence = next_sequence_++};
  communicator_.enter_collective(call.operation, id_, call.sequence);
  if (!communicator_.must(Misdeed::kSkipCollective))
    communicator_.transfers().barrier(call, ranks_, peer_order_);
  communicator_.leave_collective();
}

// Of messages without bytes, which keep their place among the other handles' messages; the counts
// of barrier() are for ranks that wait at one.
Pending ProcessGroup::start_barrier() {
  Transfer& transfer = begin(Operation::kBarrier, DataType::kBytes, 0);
  transfer.send_to_all(0, {});
  for (const int peer : peer_order_) transfer.receive(0, peer, {}, Kind::kToAll);
  return start(transfer);
}

Transfer& ProcessGroup::begin_broadcast(std::span<std::byte> data, int root) {
  TROUPE_CHECK(root >= 0 && root < size(), "root {} of {}", root, size());
  Transfer& transfer = begin(Operation::kBroadcast, DataType::kBytes, data.size());
  if (rank_ == root)
    transfer.send_to_all(0, data);
  else
    transfer.receive(0, root, data, Kind::kToAll);
  return transfer;
}

void ProcessGroup::broadcast(std::span<std::byte> data, int root) {
  run(begin_broadcast(data, root));
}

Pending ProcessGroup::start_broadcast(std::span<std::byte> data, int root) {
  return start(begin_broadcast(data, root));
}

Transfer& ProcessGroup::begin_all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  TROUPE_CHECK(out.size() % size() == 0 && out.size() / size() == in.size(), "{} of {} x {}",
               out.size(), size(), in.size());
  Transfer& transfer = begin(Operation::kAllGather, DataType::kBytes, out.size());
  transfer.send_to_all(0, in, out.data() + rank_ * in.size());
  for (const int peer : peer_order_)
    transfer.receive(0, peer, out.subspan(peer * in.size(), in.size()), Kind::kToAll);
  return transfer;
}

void ProcessGroup::all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  run(begin_all_gather(in, out));
}

Pending ProcessGroup::start_all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  return start(begin_all_gather(in, out));
}

template <class T>
Transfer& ProcessGroup::begin_reduce_scatter(std::span<const T> data, std::span<T> out) {
  TROUPE_CHECK(data.size() % size() == 0 && data.size() / size() == out.size(), "{} of {} x {}",
               data.size(), size(), out.size());
  Transfer& transfer = begin(Operation::kReduceScatter, data_type<T>(), data.size_bytes());
  for (const int peer : peer_order_)
    transfer.send(peer, std::as_bytes(data.subspan(peer * out.size(), out.size())));
  transfer.reduce(std::as_bytes(data.subspan(rank_ * out.size(), out.size())),
                  std::as_writable_bytes(out).data(), Kind::kToOne);
  return transfer;
}

void ProcessGroup::reduce_scatter(std::span<const float> data, std::span<float> out) {
  run(begin_reduce_scatter(data, out));
}

Pending ProcessGroup::start_reduce_scatter(std::span<const float> data, std::span<float> out) {
  return start(begin_reduce_scatter(data, out));
}

void ProcessGroup::reduce_scatter(std::span<const Bf16> data, std::span<Bf16> out) {
  run(begin_reduce_scatter(data, out));
}

Pending ProcessGroup::start_reduce_scatter(std::span<const Bf16> data, std::span<Bf16> out) {
  return start(begin_reduce_scatter(data, out));
}

void ProcessGroup::reduce_scatter(std::span<const int8_t> data, std::span<int8_t> out) {
  run(begin_reduce_scatter(data, out));
}

Pending ProcessGroup::start_reduce_scatter(std::span<const int8_t> data, std::span<int8_t> out) {
  return start(begin_reduce_scatter(data, out));
}

// Both ways add the same tree element by element, so the choice moves no bit.
template <class T>
Transfer& ProcessGroup::begin_all_reduce(std::span<T> data) {
  Transfer& transfer = begin(Operation::kAllReduce, data_type<T>(), data.size_bytes());
  const std::span<std::byte> bytes = std::as_writable_bytes(data);
  if (size() <= 2 || bytes.size() <= kDirectReduceBytes / (size() - 1)) {
    transfer.send_to_all(0, bytes);
    transfer.reduce(bytes, bytes.data(), Kind::kToAll);
    return transfer;
  }
  const std::span<std::byte> mine = std::as_writable_bytes(part_of(data, rank_, size()));
  transfer.send_to_all(1, mine);
  for (const int peer : peer_order_) {
    const auto theirs = std::as_writable_bytes(part_of(data, peer, size()));
    transfer.send(peer, theirs);
    transfer.receive(1, peer, theirs, Kind::kToAll);
  }
  transfer.reduce(mine, mine.data(), Kind::kToOne);
  return transfer;
}

void ProcessGroup::all_reduce(std::span<float> data) { run(begin_all_reduce(data)); }

Pending ProcessGroup::start_all_reduce(std::span<float> data) {
  return start(begin_all_reduce(data));
}

void ProcessGroup::all_reduce(std::span<Bf16> data) { run(begin_all_reduce(data)); }

Pending ProcessGroup::start_all_reduce(std::span<Bf16> data) {
  return start(begin_all_reduce(data));
}

void ProcessGroup::all_reduce(std::span<int8_t> data) { run(begin_all_reduce(data)); }

Pending ProcessGroup::start_all_reduce(std::span<int8_t> data) {
  return start(begin_all_reduce(data));
}

Transfer& ProcessGroup::begin_all_to_all(std::span<const std::byte> in, std::span<std::byte> out) {
  TROUPE_CHECK(in.size() == out.size() && in.size() % size() == 0, "{} and {} for {} ranks",
               in.size(), out.size(), size());
  Transfer& transfer = begin(Operation::kAllToAll, DataType::kBytes, in.size());
  const size_t part = in.size() / size();
  transfer.copy(in.subspan(rank_ * part, part), out.data() + rank_ * part);
  for (const int peer : peer_order_) {
    transfer.send(peer, in.subspan(peer * part, part));
    transfer.receive(0, peer, out.subspan(peer * part, part), Kind::kToOne);
  }
  return transfer;
}

void ProcessGroup::all_to_all(std::span<const std::byte> in, std::span<std::byte> out) {
  run(begin_all_to_all(in, out));
}

Pending ProcessGroup::start_all_to_all(std::span<const std::byte> in, std::span<std::byte> out) {
  return start(begin_all_to_all(in, out));
}

Transfer& ProcessGroup::begin_all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out,
                                           const VCounts& counts) {
  for (const auto& list :
       {counts.send_bytes, counts.send_displs, counts.recv_bytes, counts.recv_displs})
    TROUPE_CHECK(static_cast<int>(list.size()) == size(), "{} of {}", list.size(), size());
  const auto sent_to = [&](int p) {
    return checked_part(in, counts.send_bytes, counts.send_displs, p);
  };
  const auto received_from = [&](int p) {
    return checked_part(out, counts.recv_bytes, counts.recv_displs, p);
  };
  TROUPE_CHECK(sent_to(rank_).size() == received_from(rank_).size(), "{} bytes to itself, {} from",
               sent_to(rank_).size(), received_from(rank_).size());
  Transfer& transfer =
      begin(Operation::kAllToAllV, DataType::kBytes, std::max(in.size(), out.size()));
  transfer.copy(sent_to(rank_), received_from(rank_).data());
  for (const int peer : peer_order_) {
    transfer.send(peer, sent_to(peer));
    transfer.receive(0, peer, received_from(peer), Kind::kToOne);
  }
  return transfer;
}

void ProcessGroup::all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out,
                                const VCounts& counts) {
  run(begin_all_to_all_v(in, out, counts));
}

Pending ProcessGroup::start_all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out,
                                         const VCounts& counts) {
  return start(begin_all_to_all_v(in, out, counts));
}

}  // namespace troupe::comm
