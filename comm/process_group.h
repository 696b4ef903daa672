// comm/process_group.h: an ordered list of ranks that communicate together, and its collectives.
//
// Rules, all collectives:
// - Every rank of the group calls the same collectives in the same order with matching arguments.
//   A call that differs (kind, sequence number, size) is detected by whoever reads the header and
//   is a RankError on every rank, naming both calls; it is never hung on.
// - Buffers belong to the call until it returns (or until wait() returns, for start_*).
// - A message longer than a window slot travels in chunks; any length works.
// - Every wait ends: with the data, or after the group's deadline with a RankError that names the
//   rank that did not arrive, or at once when the launch is aborted or a rank has died.
// - Reductions add in one fixed order: the binary tree of neighbouring pairs over group ranks
//   ((0+1)+(2+3))+..., in fp32, an odd last one carried up; so the result does not depend on who
//   computes it, and equals the tree of docs/design.md section 5 for sizes 1, 2, 4, 8, 16.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/bf16.h"
#include "comm/arena.h"

namespace troupe::comm {

// A rank's access to the arena: who it is, how long it waits, what it has sent. One per process
// (tests: one per thread).
class Communicator {
 public:
  Communicator(Arena& arena, int world_rank, std::chrono::milliseconds timeout);

  int world_rank() const { return world_rank_; }
  int world_size() const { return arena_.shape().world_size; }
  Arena& arena() const { return arena_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  uint64_t bytes_sent() const { return bytes_sent_; }  // payload to other ranks
  int64_t wait_ns() const { return wait_ns_; }         // time spent waiting for other ranks
  void count_sent(uint64_t bytes) { bytes_sent_ += bytes; }

  // Publishes where this rank is (Activity), for reports and error messages.
  void enter_step(Stage stage, uint64_t step) const;
  void enter_layer(int32_t layer) const;

  // Returns when ready() is true. Spins briefly when cores >= ranks, else yields a few times, then
  // sleeps on the doorbell, which peers ring after every publication. `for_rank` is who is waited
  // for, for the error. Throws RankError on deadline, abort or the peer's failure.
  void wait_until(const std::function<bool()>& ready, int for_rank);
  void ring(int world_rank) const;  // wakes a rank that sleeps in wait_until

 private:
  Arena& arena_;
  int world_rank_;
  std::chrono::milliseconds timeout_;
  bool spin_;
  uint64_t bytes_sent_ = 0;
  int64_t wait_ns_ = 0;
};

enum class DataType : uint8_t { kBytes, kF32, kBf16, kInt8 };
size_t element_size(DataType type);

// Several collectives of one group may be in flight (at most two); wait in the order of start.
class Pending {
 public:
  Pending() = default;
  Pending(Pending&&) noexcept = default;
  Pending& operator=(Pending&&) noexcept = default;
  // Returns when the collective is complete on this rank. Calling it again does nothing.
  void wait();

 private:
  friend class ProcessGroup;
  explicit Pending(std::function<void()> finish) : finish_(std::move(finish)) {}
  std::function<void()> finish_;
};

class ProcessGroup {
 public:
  // ranks: world ranks in group order, containing communicator.world_rank(). `id` is the same on all
  // members and unlike that of any other group with an equal member.
  ProcessGroup(Communicator& communicator, uint32_t id, std::vector<int> ranks);

  int size() const { return static_cast<int>(ranks_.size()); }
  int rank() const { return rank_; }  // of this process within the group
  int world_rank(int group_rank) const { return ranks_[group_rank]; }
  uint32_t id() const { return id_; }
  Communicator& communicator() const { return communicator_; }

  void barrier();
  // data: the same size on all; the root's content everywhere after.
  void broadcast(std::span<std::byte> data, int root);
  // out [size() * in.size()]: rank r's `in` at r * in.size(). in may lie in place inside out.
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  // data [size() * out.size()]: out = the tree sum over ranks of their part rank().
  void reduce_scatter(std::span<const float> data, std::span<float> out);
  void all_reduce(std::span<float> data);
  // bf16 sums are computed in fp32 over the whole tree and rounded once.
  void reduce_scatter(std::span<const Bf16> data, std::span<Bf16> out);
  void all_reduce(std::span<Bf16> data);
  // in, out [size() * part]: part p of in goes to rank p; out part p comes from rank p.
  void all_to_all(std::span<const std::byte> in, std::span<std::byte> out);
  // Bytes to and from each rank; displacements into in and out. Both sides' counts must agree: a
  // sender that brings another size than recv_bytes says is a RankError.
  struct VCounts {
    std::span<const int64_t> send_bytes, send_displs, recv_bytes, recv_displs;  // [size()]
  };
  void all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out, const VCounts& counts);

  // The same, started now and completed by wait(): what fits the windows is sent at once.
  [[nodiscard]] Pending start_all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  [[nodiscard]] Pending start_all_reduce(std::span<float> data);
  [[nodiscard]] Pending start_all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out,
                                           const VCounts& counts);

 private:
  friend class MoeExchange;
  Communicator& communicator_;
  uint32_t id_;
  std::vector<int> ranks_;
  int rank_;
  uint64_t next_sequence_ = 1;
};

}  // namespace troupe::comm
