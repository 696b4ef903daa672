// tests/comm/serial_model.h: a call of a collective with what must come out of it. What a rank
// sends is a function of (seed, rank, index), so each rank computes by itself what it must receive,
// from everybody.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "comm/process_group.h"
#include "world.h"

namespace troupe::comm {

inline uint64_t mix(uint64_t a, uint64_t b, uint64_t c = 0) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u + c * 0x94d049bb133111ebu;
  x ^= x >> 31;
  x *= 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

inline std::byte byte_of(uint64_t seed, int rank, size_t i) {
  return std::byte(mix(seed, rank, i));
}

// Random in (-1, 1): sums in another order have other bits.
inline float float_of(uint64_t seed, int rank, size_t i) {
  return static_cast<float>(static_cast<int64_t>(mix(seed, rank, i))) * 0x1p-63f;
}

// Neighbouring pairs, level by level, an odd last one carried up.
inline std::vector<float> level_by_level(std::vector<std::vector<float>> vectors) {
  while (vectors.size() > 1) {
    std::vector<std::vector<float>> next;
    for (size_t i = 0; i + 1 < vectors.size(); i += 2) {
      for (size_t k = 0; k < vectors[i].size(); ++k) vectors[i][k] += vectors[i + 1][k];
      next.push_back(vectors[i]);
    }
    if (vectors.size() % 2 == 1) next.push_back(vectors.back());
    vectors = next;
  }
  return vectors[0];
}

inline float load(float x) { return x; }
inline float load(Bf16 x) { return to_float(x); }
inline float load(int8_t x) { return x; }
template <class T>
T rounded(float x) {
  if constexpr (std::is_same_v<T, Bf16>)
    return to_bf16(x);
  else if constexpr (std::is_same_v<T, int8_t>)
    return static_cast<int8_t>(std::clamp(x, -128.0f, 127.0f));  // a whole number
  else
    return x;
}

template <class T>
T number(uint64_t seed, int rank, size_t i) {
  const float x = float_of(seed, rank, i);
  return rounded<T>(std::is_same_v<T, int8_t> ? std::floor(x * 128) : x);
}

template <class T>
std::vector<T> numbers(uint64_t seed, int rank, size_t count) {
  std::vector<T> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = number<T>(seed, rank, i);
  return result;
}

inline std::vector<std::byte> bytes(uint64_t seed, int rank, size_t count) {
  std::vector<std::byte> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = byte_of(seed, rank, i);
  return result;
}

enum class Kind {
  kBarrier,
  kBroadcast,
  kAllGather,
  kAllGatherInPlace,
  kReduceScatter,
  kReduceScatterBf16,
  kReduceScatterInt8,
  kAllReduce,
  kAllReduceBf16,
  kAllReduceInt8,
  kAllToAll,
  kAllToAllV,
  kCount,
};

// One call of one rank, its buffers and what must come out.
class Call {
 public:
  Call(Kind kind, uint64_t seed, size_t count, ProcessGroup& group)
      : kind_(kind), seed_(seed), count_(count), group_(group) {
    prepare();
  }

  void run() {
    switch (kind_) {
      case Kind::kBarrier:
        return group_.barrier();
      case Kind::kBroadcast:
        group_.broadcast(out_, root());
        break;
      case Kind::kAllGather:
        group_.all_gather(in_, out_);
        break;
      case Kind::kAllGatherInPlace:
        group_.all_gather(mine(), out_);
        break;
      case Kind::kReduceScatter:
        group_.reduce_scatter(as<const float>(in_), as<float>(out_));
        break;
      case Kind::kReduceScatterBf16:
        group_.reduce_scatter(as<const Bf16>(in_), as<Bf16>(out_));
        break;
      case Kind::kReduceScatterInt8:
        group_.reduce_scatter(as<const int8_t>(in_), as<int8_t>(out_));
        break;
      case Kind::kAllReduce:
        group_.all_reduce(as<float>(out_));
        break;
      case Kind::kAllReduceBf16:
        group_.all_reduce(as<Bf16>(out_));
        break;
      case Kind::kAllReduceInt8:
        group_.all_reduce(as<int8_t>(out_));
        break;
      case Kind::kAllToAll:
        group_.all_to_all(in_, out_);
        break;
      default:
        group_.all_to_all_v(in_, out_, v_counts());
    }
    check();
  }

  Pending start() {
    switch (kind_) {
      case Kind::kBarrier:
        return group_.start_barrier();
      case Kind::kBroadcast:
        return group_.start_broadcast(out_, root());
      case Kind::kAllGather:
        return group_.start_all_gather(in_, out_);
      case Kind::kAllGatherInPlace:
        return group_.start_all_gather(mine(), out_);
      case Kind::kReduceScatter:
        return group_.start_reduce_scatter(as<const float>(in_), as<float>(out_));
      case Kind::kReduceScatterBf16:
        return group_.start_reduce_scatter(as<const Bf16>(in_), as<Bf16>(out_));
      case Kind::kReduceScatterInt8:
        return group_.start_reduce_scatter(as<const int8_t>(in_), as<int8_t>(out_));
      case Kind::kAllReduce:
        return group_.start_all_reduce(as<float>(out_));
      case Kind::kAllReduceBf16:
        return group_.start_all_reduce(as<Bf16>(out_));
      case Kind::kAllReduceInt8:
        return group_.start_all_reduce(as<int8_t>(out_));
      case Kind::kAllToAll:
        return group_.start_all_to_all(in_, out_);
      default:
        return group_.start_all_to_all_v(in_, out_, v_counts());
    }
  }

  void check() const {
    require(out_ == expected_, fmt::format("call of kind {}", static_cast<int>(kind_)));
  }

 private:
  int root() const { return static_cast<int>(seed_ % group_.size()); }
  std::span<std::byte> mine() { return std::span(out_).subspan(group_.rank() * count_, count_); }
  template <class T>
  static std::span<T> as(std::vector<std::byte>& data) {
    return {reinterpret_cast<T*>(data.data()), data.size() / sizeof(T)};
  }
  template <class T>
  static std::vector<std::byte> bytes_of(const std::vector<T>& values) {
    const auto data = std::as_bytes(std::span(values));
    return {data.begin(), data.end()};
  }

  void prepare() {
    switch (kind_) {
      case Kind::kBarrier:
      case Kind::kCount:
        return;
      case Kind::kBroadcast:
        expected_ = bytes(seed_, root(), count_);
        out_ = group_.rank() == root() ? expected_ : std::vector<std::byte>(count_);
        return;
      case Kind::kAllGather:
      case Kind::kAllGatherInPlace:
        return prepare_all_gather();
      case Kind::kReduceScatter:
        return prepare_reduce_scatter<float>();
      case Kind::kReduceScatterBf16:
        return prepare_reduce_scatter<Bf16>();
      case Kind::kReduceScatterInt8:
        return prepare_reduce_scatter<int8_t>();
      case Kind::kAllReduce:
        return prepare_all_reduce<float>();
      case Kind::kAllReduceBf16:
        return prepare_all_reduce<Bf16>();
      case Kind::kAllReduceInt8:
        return prepare_all_reduce<int8_t>();
      case Kind::kAllToAll:
        return prepare_all_to_all();
      case Kind::kAllToAllV:
        return prepare_all_to_all_v();
    }
  }

  void prepare_all_gather() {
    in_ = bytes(seed_, group_.rank(), count_);
    for (int r = 0; r < group_.size(); ++r)
      for (size_t i = 0; i < count_; ++i) expected_.push_back(byte_of(seed_, r, i));
    out_.resize(expected_.size());
    if (kind_ == Kind::kAllGatherInPlace) std::copy(in_.begin(), in_.end(), mine().begin());
  }

  template <class T>
  void prepare_reduce_scatter() {
    in_ = bytes_of(numbers<T>(seed_, group_.rank(), count_ * group_.size()));
    expected_ = bytes_of(sums<T>(group_.rank() * count_, count_));
    out_.resize(expected_.size());
  }

  template <class T>
  void prepare_all_reduce() {
    out_ = bytes_of(numbers<T>(seed_, group_.rank(), count_));
    expected_ = bytes_of(sums<T>(0, count_));
  }

  void prepare_all_to_all() {
    in_ = bytes(seed_, group_.rank(), count_ * group_.size());
    for (int r = 0; r < group_.size(); ++r)
      for (size_t i = 0; i < count_; ++i)
        expected_.push_back(byte_of(seed_, r, group_.rank() * count_ + i));
    out_.resize(expected_.size());
  }

  // With gaps before each part, on both sides; those of `out` stay zero.
  void prepare_all_to_all_v() {
    const int n = group_.size(), me = group_.rank();
    int64_t send_displ = static_cast<int64_t>(seed_ % 3);
    int64_t recv_displ = static_cast<int64_t>(seed_ % 5);
    for (int r = 0; r < n; ++r) {
      send_bytes_.push_back(v_bytes(me, r));
      recv_bytes_.push_back(v_bytes(r, me));
      send_displs_.push_back(std::exchange(send_displ, send_displ + send_bytes_.back() + r));
      recv_displs_.push_back(std::exchange(recv_displ, recv_displ + recv_bytes_.back() + 2 * r));
    }
    in_ = bytes(seed_, me, send_displ);
    out_.resize(recv_displ);
    expected_.resize(recv_displ);
    for (int r = 0; r < n; ++r) {
      int64_t displ = static_cast<int64_t>(seed_ % 3);
      for (int to = 0; to < me; ++to) displ += v_bytes(r, to) + to;
      for (int64_t i = 0; i < recv_bytes_[r]; ++i)
        expected_[recv_displs_[r] + i] = byte_of(seed_, r, displ + i);
    }
  }

  ProcessGroup::VCounts v_counts() const {
    return {send_bytes_, send_displs_, recv_bytes_, recv_displs_};
  }

  int64_t v_bytes(int from, int to) const {
    if (seed_ % 5 == 0) {  // one rank gets all
      const auto taker = static_cast<int>(seed_ / 5 % static_cast<uint64_t>(group_.size()));
      return to == taker ? static_cast<int64_t>(count_) : 0;
    }
    switch (mix(seed_, from, to) % 4) {
      case 0:
        return 0;
      case 1:
        return static_cast<int64_t>(mix(seed_, to, from) % 100);
      default:
        return static_cast<int64_t>(count_) + (to % 3);
    }
  }

  template <class T>
  std::vector<T> sums(size_t begin, size_t count) const {
    std::vector<std::vector<float>> vectors(group_.size());
    for (int r = 0; r < group_.size(); ++r)
      for (size_t i = begin; i < begin + count; ++i)
        vectors[r].push_back(load(number<T>(seed_, r, i)));
    std::vector<T> result;
    for (const float sum : level_by_level(vectors)) result.push_back(rounded<T>(sum));
    return result;
  }

  Kind kind_;
  uint64_t seed_;
  size_t count_;
  ProcessGroup& group_;
  std::vector<std::byte> in_, out_, expected_;
  std::vector<int64_t> send_bytes_, send_displs_, recv_bytes_, recv_displs_;
};

}  // namespace troupe::comm
