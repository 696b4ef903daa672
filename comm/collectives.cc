// Each collective as the messages it consists of. Moving them is comm/transfer's work.
#include <cstring>
#include <utility>

#include "base/error.h"
#include "comm/process_group.h"
#include "comm/transfer.h"

namespace troupe::comm {
namespace {

// Up to this many bytes sent by a rank, an all_reduce sends everything to everybody: one wait
// instead of two, each of which costs a context switch when ranks outnumber cores.
constexpr size_t kDirectReduceBytes = size_t{256} << 10;

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

void copy(std::span<const std::byte> from, std::byte* to) {
  if (!from.empty() && from.data() != to) std::memmove(to, from.data(), from.size());
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
  Transfer& transfer = begin(Operation::kBarrier, DataType::kBytes);
  for (const int peer : peer_order_) {
    transfer.send(0, peer, {});
    transfer.receive(0, peer, {});
  }
  run(transfer);
}

void ProcessGroup::broadcast(std::span<std::byte> data, int root) {
  TROUPE_CHECK(root >= 0 && root < size(), "root {} of {}", root, size());
  Transfer& transfer = begin(Operation::kBroadcast, DataType::kBytes);
  if (rank_ == root) {
    for (const int peer : peer_order_) transfer.send(0, peer, data);
  } else {
    transfer.receive(0, root, data);
  }
  run(transfer);
}

Transfer& ProcessGroup::begin_all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  TROUPE_CHECK(out.size() % size() == 0 && out.size() / size() == in.size(), "{} of {} x {}",
               out.size(), size(), in.size());
  Transfer& transfer = begin(Operation::kAllGather, DataType::kBytes);
  copy(in, out.data() + rank_ * in.size());
  for (const int peer : peer_order_) {
    transfer.send(0, peer, in);
    transfer.receive(0, peer, out.subspan(peer * in.size(), in.size()));
  }
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
  Transfer& transfer = begin(Operation::kReduceScatter, data_type<T>());
  for (const int peer : peer_order_)
    transfer.send(0, peer, std::as_bytes(data.subspan(peer * out.size(), out.size())));
  transfer.reduce(std::as_bytes(data.subspan(rank_ * out.size(), out.size())),
                  std::as_writable_bytes(out).data(), false);
  return transfer;
}

void ProcessGroup::reduce_scatter(std::span<const float> data, std::span<float> out) {
  run(begin_reduce_scatter(data, out));
}

void ProcessGroup::reduce_scatter(std::span<const Bf16> data, std::span<Bf16> out) {
  run(begin_reduce_scatter(data, out));
}

// Both ways add the same tree element by element, so the choice moves no bit.
template <class T>
Transfer& ProcessGroup::begin_all_reduce(std::span<T> data) {
  Transfer& transfer = begin(Operation::kAllReduce, data_type<T>());
  const std::span<std::byte> bytes = std::as_writable_bytes(data);
  if (size() <= 2 || bytes.size() <= kDirectReduceBytes / (size() - 1)) {
    for (const int peer : peer_order_) transfer.send(0, peer, bytes);
    transfer.reduce(bytes, bytes.data(), true);
    return transfer;
  }
  const std::span<std::byte> mine = std::as_writable_bytes(part_of(data, rank_, size()));
  for (const int peer : peer_order_) {
    const auto theirs = std::as_writable_bytes(part_of(data, peer, size()));
    transfer.send(0, peer, theirs);
    transfer.send(1, peer, mine);
    transfer.receive(1, peer, theirs);
  }
  transfer.reduce(mine, mine.data(), false);
  return transfer;
}

void ProcessGroup::all_reduce(std::span<float> data) { run(begin_all_reduce(data)); }

void ProcessGroup::all_reduce(std::span<Bf16> data) { run(begin_all_reduce(data)); }

Pending ProcessGroup::start_all_reduce(std::span<float> data) {
  return start(begin_all_reduce(data));
}

void ProcessGroup::all_to_all(std::span<const std::byte> in, std::span<std::byte> out) {
  TROUPE_CHECK(in.size() == out.size() && in.size() % size() == 0, "{} and {} for {} ranks",
               in.size(), out.size(), size());
  Transfer& transfer = begin(Operation::kAllToAll, DataType::kBytes);
  const size_t part = in.size() / size();
  copy(in.subspan(rank_ * part, part), out.data() + rank_ * part);
  for (const int peer : peer_order_) {
    transfer.send(0, peer, in.subspan(peer * part, part));
    transfer.receive(0, peer, out.subspan(peer * part, part));
  }
  run(transfer);
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
  Transfer& transfer = begin(Operation::kAllToAllV, DataType::kBytes);
  copy(sent_to(rank_), received_from(rank_).data());
  for (const int peer : peer_order_) {
    transfer.send(0, peer, sent_to(peer));
    transfer.receive(0, peer, received_from(peer));
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
