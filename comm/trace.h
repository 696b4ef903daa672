// comm/trace.h: what a process does and when, written into a ring of shared memory.
//
// A ring keeps the last events of one rank (of the launcher: one more ring); a dead rank's can
// still be read (comm/trace_ring.h). Writing one is a clock and a few stores into memory that was
// there before: no system call, no lock, no allocation. Without a trace every call is a test of a
// null pointer.
//
// Spans are opened and closed by one thread and nest like its calls, so the time spent in an
// operation itself is its span less the spans directly inside it: time by operation is the sum of
// that, and adds up to the time of the step.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>

namespace troupe::comm {

class Arena;
struct TraceEvent;
struct TraceRing;

// Where a span is drawn: an actor. Values of msg::ActorKind.
enum class TraceTrack : uint8_t { kScheduler, kRank, kAttention, kMoe, kLmHead, kMtp };
inline constexpr int kTraceTracks = 6;
const char* track_name(TraceTrack track);  // "scheduler", "rank", "attention", ...

enum class TraceOp : uint8_t {
  // scheduler
  kPlanStep,      // admits requests, cuts prompts, sends the plans
  kAnswer,        // takes in a rank's results
  kAwaitAnswers,  // of the ranks
  // rank
  kAwaitPlan,
  kPrefill,  // a step: everything between a plan and its answer
  kDecode,   // the same without prompt tokens on any rank
  kSendAnswer,
  // attention; the first is a block around the others
  kAttention,
  kEmbedding,
  kRmsNorm,
  kQueryProjection,  // with its norm and rotation; of latents, or keys and values, too
  kKvProjection,     // into the cache, with norm and rotation
  kAbsorb,           // MLA: queries into the latent space
  kAttend,           // the cache
  kValueProjection,  // MLA: out of the latent space
  kOutputProjection,
  kResidual,
  // moe; the first is a block around the others
  kFeedForward,
  kGate,
  kMlp,           // dense, or a shared expert that is cut over ranks
  kSharedExpert,  // whole on every rank: while rows travel
  kExperts,       // of this rank
  kPackRows,      // for dispatch
  kAddExperts,    // what came back, weighed and added
  // lm_head
  kLogits,  // a block around the others, with the final norm
  kLmHead,  // the product
  kSample,
  // mtp
  kDraft,  // prepares a pass of the draft layer
  // collectives, in the order of comm::Operation; then every wait for another rank inside them
  kBarrier,
  kBroadcast,
  kAllGather,
  kReduceScatter,
  kAllReduce,
  kAllToAll,
  kAllToAllV,
  kDispatch,
  kCombine,
  kWait,
};
inline constexpr int kTraceOps = static_cast<int>(TraceOp::kWait) + 1;

enum class TraceCategory : uint8_t { kCompute, kCommunication, kWaiting, kControl };
struct TraceOpInfo {
  const char* name;  // "rms_norm": names an operation for ever; programs sum by it
  TraceCategory category;
};
const TraceOpInfo& trace_op(TraceOp op);
const char* category_name(TraceCategory category);  // "compute", "communication", ...

enum class TraceCounter : uint8_t {
  kKvBlocks,  // in use on data-parallel rank `peer`
  kRunning,   // requests
  kWaiting,
  kDrafted,  // tokens, in the step
  kAccepted,
};
inline constexpr int kTraceCounters = 5;
const char* counter_name(TraceCounter counter);  // "kv_blocks", ...

// The writing end. One per process, for one thread.
class Trace {
 public:
  // ring: a rank, or world_size for the launcher's. What it holds of an earlier recording goes.
  Trace(const Arena& arena, int ring, uint32_t recording = 1);
  uint32_t recording() const { return recording_; }  // its number, from 1

  // What events from now on belong to.
  void set_track(TraceTrack track) { track_ = track; }
  void set_step(uint64_t step) { step_ = static_cast<uint32_t>(step); }
  void set_layer(int32_t layer) { layer_ = static_cast<int16_t>(layer); }

  // Returns the number of the span, for end().
  uint64_t begin(TraceOp op, int64_t tokens, int64_t bytes, int32_t peer);
  void end(uint64_t span);
  // One end of an arrow between ranks: rows of a dispatch sent to, or received from, world rank
  // `peer`. Both ends name the same round of the same group. Inside a span.
  void sent(int32_t peer, uint32_t group, uint64_t round, int64_t tokens, int64_t bytes);
  void received(int32_t peer, uint32_t group, uint64_t round, int64_t tokens, int64_t bytes);
  void count(TraceCounter counter, int64_t value, int32_t of = -1);

  // Totals of the whole run, which no ring forgets.
  void add_sent_bytes(int32_t peer, uint64_t bytes);
  void add_expert_rows(int32_t expert, int64_t rows);  // in the present layer

 private:
  TraceEvent& open(uint8_t kind, uint8_t which, int32_t peer);
  void publish();
  void write_arrow(uint8_t kind, int32_t peer, uint32_t group, uint64_t round, int64_t tokens,
                   int64_t bytes);

  TraceRing& ring_;
  TraceEvent* events_;
  uint32_t recording_;
  uint64_t mask_;  // of a number of events that is a power of two
  uint64_t written_ = 0;
  TraceTrack track_ = TraceTrack::kRank;
  uint32_t step_ = 0;
  int16_t layer_ = -1;
};

// A span while it lives; none if `trace` is null. tokens, bytes: what the operation works on, 0 if
// that says nothing; peer: the world rank it is about, or -1.
class TraceSpan {
 public:
  TraceSpan() = default;
  TraceSpan(Trace* trace, TraceOp op, int64_t tokens = 0, int64_t bytes = 0, int32_t peer = -1)
      : trace_(trace) {
    if (trace_ != nullptr) [[unlikely]]
      span_ = trace_->begin(op, tokens, bytes, peer);
  }
  ~TraceSpan() { end(); }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

  void end() {  // before its time
    if (trace_ != nullptr) [[unlikely]]
      std::exchange(trace_, nullptr)->end(span_);
  }

 private:
  Trace* trace_ = nullptr;
  uint64_t span_ = 0;
};

}  // namespace troupe::comm
