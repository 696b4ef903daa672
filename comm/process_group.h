// comm/process_group.h: an ordered list of ranks that communicate together, and its collectives.
//
// Rules, all collectives:
// - Every rank of the group calls the same collectives in the same order with matching arguments;
//   ranks that share several groups call the collectives of all of them in one order.
//   A call that differs (kind, sequence number, size) is detected by whoever reads the header and
//   is a RankError on every rank, naming both calls; it is never hung on.
// - Buffers belong to the call until it returns (or until wait() returns, for start_*).
// - A message longer than a window slot travels in chunks; any length works.
// - Every wait ends: with the data, or after the group's deadline with a RankError that names the
//   rank that did not arrive, or at once when the launch is aborted or a rank has died.
// - Reductions add in one fixed order: the binary tree of neighbouring pairs over group ranks
//   ((0+1)+(2+3))+..., in fp32, an odd last one carried up; so the result does not depend on who
//   computes it, and equals the tree of docs/design.md section 5 for sizes 1, 2, 4, 8, 16. A bf16
//   sum is rounded once, after the root; an int8 sum is exact and cut to [-128, 127] there.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/bf16.h"
#include "comm/arena.h"
#include "comm/fault.h"
#include "comm/flight_recorder.h"
#include "comm/trace.h"

namespace troupe::comm {

// What is waited for: refers to a callable that returns bool and outlives the call it is passed to.
// Not std::function, which may allocate.
class Condition {
 public:
  template <class Callable>
  requires(!std::is_same_v<Callable, Condition>)
      Condition(const Callable& callable)  // implicit: a lambda is passed as it is
      : callable_(&callable),
        call_([](const void* object) { return (*static_cast<const Callable*>(object))(); }) {}
  bool operator()() const { return call_(callable_); }

 private:
  const void* callable_;
  bool (*call_)(const void*);
};

class CommThread;  // drives exchanges beside the rank's main thread (comm/comm_thread.h)
class Transfer;    // a collective on its way (comm/transfer.h)
struct Blame;
class TransferQueue;  // all those of this rank, and its channels

// Who drives what is started (start_*) until it is waited for: a dispatch/combine round, a handle.
enum class CommMode {
  kInline,  // the rank's main thread, whenever it waits
  kThread,  // a thread of the rank's own, so that exchange and compute overlap
};

struct CommOptions {
  CommMode mode = CommMode::kInline;
  // Whether waits spin before they sleep: only where every thread that computes or communicates has
  // a core of its own.
  bool spin = false;
  bool traced = true;  // from the start, if the arena has rings
};

// Whether this process may run on as many cores as all ranks have threads. For a process that has
// not been pinned yet.
bool has_core_for_each_thread(int world_size, int threads_per_rank);

// A rank's access to the arena: who it is, how long it waits, what it has sent. One per process
// (tests: one per thread), used by one thread at a time; outlives its groups. After a RankError
// every later collective of this rank is a RankError too.
//
// kThread: what the thread throws is thrown where the main thread waits for it. A blocking call
// waits first for all that has been started before.
class Communicator {
 public:
  Communicator(Arena& arena, int world_rank, std::chrono::milliseconds timeout,
               const CommOptions& options);
  // Inline, for ranks of one thread.
  Communicator(Arena& arena, int world_rank, std::chrono::milliseconds timeout);
  ~Communicator();

  int world_rank() const { return world_rank_; }
  int world_size() const { return arena_.shape().world_size; }
  Arena& arena() const { return arena_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  uint64_t bytes_sent() const { return bytes_sent_; }  // payload to other ranks
  int64_t wait_ns() const { return wait_ns_; }         // time spent waiting for other ranks
  bool spins() const { return spin_; }
  void count_sent(int world_rank, uint64_t bytes) {
    bytes_sent_ += bytes;
    if (trace_) trace_->add_sent_bytes(world_rank, bytes);
  }
  // Null unless something is recorded, and for the comm thread: a ring has one writer. What that
  // thread does shows as the main thread's wait for it.
  Trace* trace();
  // Between steps, for the thread that calls: 0 ends the recording, another number than that of the
  // one under way begins anew.
  void record(uint32_t recording);

  // Publishes where this rank is (Activity), for reports and error messages.
  void enter_step(Stage stage, uint64_t step);
  void enter_layer(int32_t layer);

  // Faults that this rank is to bring upon itself; without any they cost the look at a pointer.
  void inject(std::vector<Fault> faults);
  bool must(Misdeed misdeed) const { return faults_ != nullptr && faults_->take(misdeed); }

  // Returns when ready() is true. Spins briefly when cores >= ranks, else yields for a while, then
  // sleeps on the doorbell, which peers ring after every publication. `for_rank` is who is waited
  // for, for the error. Throws RankError on deadline, abort or any rank's failure.
  // kThatRank sleeps through the rings of others: of n missing ranks one wakes for about log n
  // arrivals, not for all.
  enum class WakeOn { kAnyRank, kThatRank };
  void wait_until(Condition ready, int for_rank, WakeOn wake_on = WakeOn::kAnyRank);
  // Wakes a rank that sleeps in wait_until for what this rank has just published. Between the
  // publication and ring() lies a sequentially consistent fence (publication_fence(), one for any
  // number of rings), else the sleeper can miss both until its next heartbeat, a second.
  void ring(int world_rank) const;
  void ring_if_for_any(int world_rank) const;  // unless it sleeps for one rank
  static void publication_fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

  // For the rest of comm. Between enter and leave, Activity shows the collective; the flight
  // recorder keeps it, with the bytes of this rank's larger buffer. pause_collective leaves one
  // that goes on (a handle), resume_collective comes back to it.
  void enter_collective(Operation operation, uint32_t group, uint64_t sequence, uint64_t bytes = 0);
  void leave_collective();
  void pause_collective();
  void resume_collective(Operation operation, uint32_t group, uint64_t sequence);
  // A group of this rank, with its world ranks.
  void add_group(uint32_t id, std::span<const int> ranks);
  // "rank 1: all_gather of group 0 (#7), decode step 14: <what>".
  std::string error_text(const std::string& what) const;
  // Publishes that text as this rank's failure, so that all ranks end, and throws it as RankError,
  // with a list of who has come to the collective. `blamed`: the rank that did not.
  [[noreturn]] void fail(const std::string& what, int blamed = -1) const;
  TransferQueue& transfers() const { return *transfers_; }
  // The thread that drives what this one starts; null if that is this one itself.
  CommThread* comm_thread() const;
  // Returns when that thread has run its job; throws what it threw.
  void wait_for_job(uint32_t job, Operation operation);
  // Returns when the thread has nothing left to do, if there is one.
  void wait_for_comm_thread() const;
  // Ends what the thread waits for, for buffers that are going: later calls throw.
  void abandon_comm_thread() noexcept;

 private:
  struct Group {
    uint32_t id;
    std::vector<int> ranks;
    int32_t leader;  // the lowest
  };
  const Group* find_group(uint32_t id) const;
  std::string arrivals() const;  // to the collective that it is in
  void show_collective(Operation operation, uint32_t group, uint64_t sequence) const;
  void arrive() const;
  bool ready_soon(Condition ready, int64_t start) const;
  void wake(int world_rank, uint32_t sleeping_for) const;
  void sleep_until(Condition ready, int for_rank, WakeOn wake_on, int64_t start);
  void throw_if_world_ended() const;
  std::string timeout_text(int for_rank, const Blame& blame) const;

  Arena& arena_;
  int world_rank_;
  std::chrono::milliseconds timeout_;
  bool spin_;
  std::atomic<bool> abandoned_{false};  // what the comm thread does is no longer wanted
  uint64_t bytes_sent_ = 0;
  int64_t wait_ns_ = 0;
  FlightRecorder flights_;
  std::optional<Trace> trace_;
  std::optional<TraceSpan> collective_;  // the one it is in
  std::vector<Group> groups_;
  std::unique_ptr<TransferQueue> transfers_;
  std::unique_ptr<FaultInjector> faults_;    // null: none
  std::unique_ptr<CommThread> comm_thread_;  // last, so that it ends before what it uses
};

enum class DataType : uint8_t { kBytes, kF32, kBf16, kInt8 };
size_t element_size(DataType type);

// Several collectives of one group may be in flight (two handles, and a blocking call beside
// them); wait in the order of start.
// Does not outlive its group. One destroyed before wait() leaves the rank unable to communicate:
// its buffers may be gone.
class Pending {
 public:
  Pending() = default;
  Pending(Pending&& other) noexcept;
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();
  // Returns when the collective is complete on this rank. Calling it again does nothing.
  void wait();

 private:
  friend class ProcessGroup;
  explicit Pending(Transfer& transfer);
  Pending(Transfer& transfer, uint32_t job);  // of the comm thread
  bool is_under_way() const;
  Transfer* transfer_ = nullptr;
  Operation operation_{};
  uint64_t sequence_ = 0;
  bool handed_over_ = false;
  uint32_t job_ = 0;
};

class ProcessGroup {
 public:
  // ranks: world ranks in group order, containing communicator.world_rank(). `id` is the same on
  // all members and unlike that of any other group with an equal member.
  ProcessGroup(Communicator& communicator, uint32_t id, std::vector<int> ranks);
  ProcessGroup(ProcessGroup&& other) noexcept;
  ~ProcessGroup();

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
  void reduce_scatter(std::span<const Bf16> data, std::span<Bf16> out);
  void reduce_scatter(std::span<const int8_t> data, std::span<int8_t> out);
  void all_reduce(std::span<float> data);
  void all_reduce(std::span<Bf16> data);
  void all_reduce(std::span<int8_t> data);
  // in, out [size() * part]: part p of in goes to rank p; out part p comes from rank p.
  void all_to_all(std::span<const std::byte> in, std::span<std::byte> out);
  // Bytes to and from each rank; displacements into in and out. Both sides' counts must agree: a
  // sender that brings another size than recv_bytes says is a RankError.
  struct VCounts {
    std::span<const int64_t> send_bytes, send_displs, recv_bytes, recv_displs;  // [size()]
  };
  void all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out, const VCounts& counts);

  // The same, started now and completed by wait(): what fits the windows is sent at once. A rank
  // that starts a call may meet ones that make it and wait; not so start_barrier, which is met by
  // start_barrier alone.
  [[nodiscard]] Pending start_barrier();
  [[nodiscard]] Pending start_broadcast(std::span<std::byte> data, int root);
  [[nodiscard]] Pending start_all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  [[nodiscard]] Pending start_reduce_scatter(std::span<const float> data, std::span<float> out);
  [[nodiscard]] Pending start_reduce_scatter(std::span<const Bf16> data, std::span<Bf16> out);
  [[nodiscard]] Pending start_reduce_scatter(std::span<const int8_t> data, std::span<int8_t> out);
  [[nodiscard]] Pending start_all_reduce(std::span<float> data);
  [[nodiscard]] Pending start_all_reduce(std::span<Bf16> data);
  [[nodiscard]] Pending start_all_reduce(std::span<int8_t> data);
  [[nodiscard]] Pending start_all_to_all(std::span<const std::byte> in, std::span<std::byte> out);
  [[nodiscard]] Pending start_all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out,
                                           const VCounts& counts);

 private:
  friend class MoeExchange;
  Transfer& begin(Operation operation, DataType element, uint64_t bytes);
  void run(Transfer& transfer);
  Pending start(Transfer& transfer);
  Transfer& begin_broadcast(std::span<std::byte> data, int root);
  Transfer& begin_all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  Transfer& begin_all_to_all(std::span<const std::byte> in, std::span<std::byte> out);
  Transfer& begin_all_to_all_v(std::span<const std::byte> in, std::span<std::byte> out,
                               const VCounts& counts);
  template <class T>
  Transfer& begin_reduce_scatter(std::span<const T> data, std::span<T> out);
  template <class T>
  Transfer& begin_all_reduce(std::span<T> data);

  Communicator& communicator_;
  uint32_t id_;
  std::vector<int> ranks_;
  int rank_;
  uint64_t next_sequence_ = 1;
  // The other group ranks, shuffled: who waits for them in this order meets few that come next.
  std::vector<int> peer_order_;
  std::vector<std::unique_ptr<Transfer>> transfers_;
};

}  // namespace troupe::comm
