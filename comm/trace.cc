#include "comm/trace.h"

#include <algorithm>
#include <array>
#include <bit>

#include "base/error.h"
#include "comm/arena_layout.h"
#include "comm/trace_ring.h"

namespace troupe::comm {
namespace {

constexpr auto kCompute = TraceCategory::kCompute;
constexpr auto kCommunication = TraceCategory::kCommunication;
constexpr auto kWaiting = TraceCategory::kWaiting;
constexpr auto kControl = TraceCategory::kControl;

// In the order of TraceOp.
constexpr std::array<TraceOpInfo, kTraceOps> kOps = {{
    {"plan_step", kControl},
    {"answer", kControl},
    {"await_answers", kWaiting},
    {"await_plan", kWaiting},
    {"prefill", kControl},
    {"decode", kControl},
    {"send_answer", kControl},
    {"attention", kCompute},
    {"embedding", kCompute},
    {"rms_norm", kCompute},
    {"q_proj", kCompute},
    {"kv_proj", kCompute},
    {"absorb", kCompute},
    {"attend", kCompute},
    {"v_proj", kCompute},
    {"o_proj", kCompute},
    {"residual", kCompute},
    {"feed_forward", kCompute},
    {"gate", kCompute},
    {"mlp", kCompute},
    {"shared_expert", kCompute},
    {"experts", kCompute},
    {"pack_rows", kCompute},
    {"add_experts", kCompute},
    {"logits", kCompute},
    {"lm_head", kCompute},
    {"sample", kCompute},
    {"draft", kCompute},
    {"barrier", kCommunication},
    {"broadcast", kCommunication},
    {"all_gather", kCommunication},
    {"reduce_scatter", kCommunication},
    {"all_reduce", kCommunication},
    {"all_to_all", kCommunication},
    {"all_to_all_v", kCommunication},
    {"dispatch", kCommunication},
    {"combine", kCommunication},
    {"wait", kWaiting},
}};

constexpr std::array kCategories = {"compute", "communication", "waiting", "control"};
constexpr std::array kTracks = {"scheduler", "rank", "attention", "moe", "lm_head", "mtp"};
static_assert(kTracks.size() == kTraceTracks);
constexpr std::array kCounters = {"kv_blocks", "running", "waiting", "drafted", "accepted"};
static_assert(kCounters.size() == kTraceCounters);

template <class Table>
auto& at(const Table& table, auto index) {
  const auto i = static_cast<size_t>(index);
  TROUPE_CHECK(i < table.size(), "{}", i);
  return table[i];
}

constexpr uint64_t kPrefetchEvents = 8;

size_t align_up(size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

}  // namespace

const TraceOpInfo& trace_op(TraceOp op) { return at(kOps, op); }
const char* category_name(TraceCategory category) { return at(kCategories, category); }
const char* track_name(TraceTrack track) { return at(kTracks, track); }
const char* counter_name(TraceCounter counter) { return at(kCounters, counter); }

size_t TraceShape::ring_bytes(int world_size) const {
  const size_t totals =
      (static_cast<size_t>(world_size) + static_cast<size_t>(num_layers) * num_experts) *
      sizeof(uint64_t);
  return on() ? align_up(kCacheLine + totals + num_events * sizeof(TraceEvent)) : 0;
}

uint64_t* TraceRing::sent_bytes() {
  return reinterpret_cast<uint64_t*>(reinterpret_cast<std::byte*>(this) + kCacheLine);
}
uint64_t* TraceRing::expert_rows() { return sent_bytes() + world_size; }
TraceEvent* TraceRing::events() {
  return reinterpret_cast<TraceEvent*>(expert_rows() +
                                       static_cast<size_t>(num_layers) * num_experts);
}

// By the arena's sizes: what the ring says of itself is not trusted.
void TraceRing::clear(const ArenaShape& shape) {
  written.store(0, std::memory_order_release);
  const size_t experts = static_cast<size_t>(shape.trace.num_layers) * shape.trace.num_experts;
  std::fill_n(sent_bytes(), static_cast<size_t>(shape.world_size) + experts, 0);
}

// ---- writing ------------------------------------------------------------------------------------

Trace::Trace(const Arena& arena, int ring, uint32_t recording)
    : ring_(arena.trace_ring(ring)), recording_(recording) {
  const TraceShape& shape = arena.shape().trace;
  ring_.num_events = shape.num_events;
  ring_.world_size = arena.shape().world_size;
  ring_.num_layers = shape.num_layers;
  ring_.num_experts = shape.num_experts;
  events_ = ring_.events();
  TROUPE_CHECK(std::has_single_bit(static_cast<uint64_t>(shape.num_events)), "{}",
               shape.num_events);
  mask_ = static_cast<uint64_t>(shape.num_events) - 1;
  ring_.clear(arena.shape());
  // Now, or the first round of the ring would pay for each of its pages.
  std::fill_n(events_, shape.num_events, TraceEvent{});
}

// Of the event that is to be written next. It counts once it is whole: what a rank that died has
// counted can be read.
TraceEvent& Trace::open(uint8_t kind, uint8_t which, int32_t peer) {
  TraceEvent& event = events_[written_ & mask_];
  // The ring is larger than the caches: a store that misses holds up those behind it.
  __builtin_prefetch(&events_[(written_ + kPrefetchEvents) & mask_], 1);
  event.start = static_cast<int64_t>(now_ticks());
  event.step = step_;
  event.peer = peer;
  event.layer = layer_;
  event.kind = static_cast<TraceEvent::Kind>(kind);
  event.track = track_;
  event.which = which;
  return event;
}

void Trace::publish() { ring_.written.store(++written_, std::memory_order_release); }

uint64_t Trace::begin(TraceOp op, int64_t tokens, int64_t bytes, int32_t peer) {
  TraceEvent& event = open(TraceEvent::kSpan, static_cast<uint8_t>(op), peer);
  event.end = 0;
  event.tokens = static_cast<uint32_t>(tokens);
  event.bytes = bytes;
  publish();
  return written_ - 1;
}

void Trace::end(uint64_t span) {
  if (written_ - span <= mask_)  // else it has been, or may be being, overwritten
    events_[span & mask_].end = static_cast<int64_t>(now_ticks());
}

void Trace::sent(int32_t peer, uint32_t group, uint64_t round, int64_t tokens, int64_t bytes) {
  write_arrow(TraceEvent::kSent, peer, group, round, tokens, bytes);
}

void Trace::received(int32_t peer, uint32_t group, uint64_t round, int64_t tokens, int64_t bytes) {
  write_arrow(TraceEvent::kReceived, peer, group, round, tokens, bytes);
}

void Trace::write_arrow(uint8_t kind, int32_t peer, uint32_t group, uint64_t round, int64_t tokens,
                        int64_t bytes) {
  TraceEvent& event = open(kind, static_cast<uint8_t>(TraceOp::kDispatch), peer);
  event.end = static_cast<int64_t>(round);
  event.group = group;
  event.tokens = static_cast<uint32_t>(tokens);
  event.bytes = bytes;
  publish();
}

void Trace::count(TraceCounter counter, int64_t value, int32_t of) {
  open(TraceEvent::kCounter, static_cast<uint8_t>(counter), of).end = value;
  publish();
}

void Trace::add_sent_bytes(int32_t peer, uint64_t bytes) { ring_.sent_bytes()[peer] += bytes; }

void Trace::add_expert_rows(int32_t expert, int64_t rows) {
  TROUPE_CHECK(layer_ >= 0 && layer_ < ring_.num_layers && expert < ring_.num_experts, "{}",
               layer_);
  ring_.expert_rows()[static_cast<size_t>(layer_) * ring_.num_experts + expert] +=
      static_cast<uint64_t>(rows);
}

// ---- reading ------------------------------------------------------------------------------------

void clear_traces(const Arena& arena) {
  for (int ring = 0; ring <= arena.shape().world_size; ++ring)
    arena.trace_ring(ring).clear(arena.shape());
}

static bool is_plausible(const TraceEvent& event) {
  const int kinds = event.kind == TraceEvent::kCounter ? kTraceCounters : kTraceOps;
  return event.kind <= TraceEvent::kCounter && static_cast<int>(event.track) < kTraceTracks &&
         event.which < kinds;
}

TraceSnapshot read_trace(const Arena& arena, int index, const TickClock& clock) {
  TraceRing& ring = arena.trace_ring(index);
  const TraceShape& shape = arena.shape().trace;  // what the ring says of itself is not trusted
  TraceSnapshot snapshot;
  const uint64_t written = ring.written.load(std::memory_order_acquire);
  // The oldest may be half overwritten.
  const auto kept = std::min(written, static_cast<uint64_t>(shape.num_events) - 1);
  snapshot.forgotten = written - kept;
  snapshot.events.reserve(kept);
  for (uint64_t number = written - kept; number < written; ++number) {
    TraceEvent event = ring.events()[number % static_cast<uint64_t>(shape.num_events)];
    if (!is_plausible(event)) continue;
    event.start = clock.to_ns(static_cast<uint64_t>(event.start));
    if (event.kind == TraceEvent::kSpan && event.end != 0)
      event.end = clock.to_ns(static_cast<uint64_t>(event.end));
    snapshot.events.push_back(event);
  }
  snapshot.sent_bytes.assign(ring.sent_bytes(), ring.sent_bytes() + arena.shape().world_size);
  snapshot.expert_rows.assign(
      ring.expert_rows(),
      ring.expert_rows() + static_cast<size_t>(shape.num_layers) * shape.num_experts);
  return snapshot;
}

}  // namespace troupe::comm
