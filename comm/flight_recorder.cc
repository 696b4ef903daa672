#include "comm/flight_recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <optional>

#include "comm/arena_layout.h"
#include "comm/heartbeat.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace troupe::comm {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
// How far back a handle's record is looked for: more handles than this are never in flight.
constexpr uint64_t kResumeWithin = 32;

}  // namespace

int64_t now_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

uint64_t now_ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return static_cast<uint64_t>(now_ns());
#endif
}

TickClock::TickClock(const Arena& arena)
    : start_ticks_(arena.launch_state().start_ticks), start_ns_(arena.launch_state().start_ns) {
  const uint64_t ticks = now_ticks();
  if (ticks > start_ticks_)
    ns_per_tick_ =
        static_cast<double>(now_ns() - start_ns_) / static_cast<double>(ticks - start_ticks_);
}

int64_t TickClock::to_ns(uint64_t ticks) const {
  const auto since_start = static_cast<double>(static_cast<int64_t>(ticks - start_ticks_));
  return start_ns_ + static_cast<int64_t>(since_start * ns_per_tick_);
}

FlightRecorder::FlightRecorder(const Arena& arena, int rank) : ring_(arena.flight_ring(rank)) {}

Arena::Flight& FlightRecorder::record(uint64_t number) const {
  return ring_[number % kFlightRecords];
}

void FlightRecorder::begin(Operation operation, uint32_t group, int32_t leader, uint64_t sequence,
                           uint64_t bytes) {
  Arena::Flight& last = record(begun_);
  if (begun_ > 0 && last.sequence.load(kRelaxed) == sequence &&
      last.group.load(kRelaxed) == group && last.operation.load(kRelaxed) == operation) {
    open_ = begun_;
    last.end_ticks.store(0, kRelaxed);
    return;
  }
  open_ = ++begun_;
  Arena::Flight& flight = record(begun_);
  flight.number.store(0, kRelaxed);
  std::atomic_thread_fence(std::memory_order_release);  // 0 is seen before any of the new values
  flight.operation.store(operation, kRelaxed);
  flight.group.store(group, kRelaxed);
  flight.leader.store(leader, kRelaxed);
  flight.sequence.store(sequence, kRelaxed);
  flight.bytes.store(bytes, kRelaxed);
  flight.end_ticks.store(0, kRelaxed);
  flight.start_ticks.store(now_ticks(), kRelaxed);
  flight.number.store(begun_, std::memory_order_release);
}

void FlightRecorder::resume(uint32_t group, uint64_t sequence) {
  for (uint64_t back = 0; back < std::min(begun_, kResumeWithin); ++back) {
    const Arena::Flight& flight = record(begun_ - back);
    if (flight.group.load(kRelaxed) != group || flight.sequence.load(kRelaxed) != sequence)
      continue;
    open_ = begun_ - back;
    return;
  }
  open_ = 0;
}

void FlightRecorder::end() {
  if (open_ == 0) return;
  record(open_).end_ticks.store(now_ticks(), kRelaxed);
  open_ = 0;
}

std::vector<FlightRecord> Arena::flights(int rank) const {
  const TickClock clock(*this);
  std::vector<std::pair<uint64_t, FlightRecord>> numbered;
  const Flight* ring = flight_ring(rank);
  for (size_t i = 0; i < kFlightRecords; ++i) {
    const Flight& flight = ring[i];
    const uint64_t number = flight.number.load(std::memory_order_acquire);
    const uint64_t end = flight.end_ticks.load(kRelaxed);
    const FlightRecord record{.operation = flight.operation.load(kRelaxed),
                              .group = flight.group.load(kRelaxed),
                              .leader = flight.leader.load(kRelaxed),
                              .sequence = flight.sequence.load(kRelaxed),
                              .bytes = flight.bytes.load(kRelaxed),
                              .start_ns = clock.to_ns(flight.start_ticks.load(kRelaxed)),
                              .end_ns = end == 0 ? 0 : clock.to_ns(end)};
    std::atomic_thread_fence(std::memory_order_acquire);
    if (number != 0 && number == flight.number.load(kRelaxed))
      numbered.emplace_back(number, record);
  }
  std::ranges::sort(numbered, {}, [](const auto& entry) { return entry.first; });
  std::vector<FlightRecord> records;
  for (const auto& entry : numbered) records.push_back(entry.second);
  return records;
}

namespace {

using Records = std::vector<FlightRecord>;

// The call that the failure is about: what the failed rank is in, or what others wait for it in, or
// its last one. Nobody failed: what somebody waits in.
std::optional<FlightRecord> subject(const Arena& arena, const std::vector<Records>& flights,
                                    int failed_rank) {
  const auto current = [&](int rank) -> std::optional<FlightRecord> {
    const ActivitySnapshot now = arena.snapshot(rank);
    if (now.operation == Operation::kNone) return std::nullopt;
    const auto found =
        std::find_if(flights[rank].rbegin(), flights[rank].rend(), [&](const FlightRecord& record) {
          return record.operation == now.operation && record.group == now.group &&
                 record.sequence == now.sequence;
        });
    return found == flights[rank].rend() ? std::nullopt : std::optional(*found);
  };
  if (failed_rank >= 0)
    if (const auto call = current(failed_rank)) return call;
  for (int rank = 0; rank < arena.shape().world_size; ++rank) {
    const int waiting_for = arena.snapshot(rank).waiting_for;
    if (failed_rank >= 0 ? waiting_for == failed_rank : waiting_for >= 0)
      if (const auto call = current(rank)) return call;
  }
  if (failed_rank < 0 || flights[failed_rank].empty()) return std::nullopt;
  return flights[failed_rank].back();
}

std::string ago(int64_t ns) { return fmt::format("{:.3f} s ago", static_cast<double>(ns) * 1e-9); }

bool is_of_group(const FlightRecord& record, const FlightRecord& call) {
  return record.group == call.group && record.leader == call.leader;
}

const FlightRecord* find_call(const Records& records, const FlightRecord& call) {
  const auto found = std::ranges::find_if(records, [&](const FlightRecord& record) {
    // The dispatch and the combine of a round have one number.
    return is_of_group(record, call) && record.sequence == call.sequence &&
           record.operation == call.operation;
  });
  return found == records.end() ? nullptr : &*found;
}

// "arrived 1.204 s ago", "left 0.001 s ago", "not arrived", "not in the group"
std::string arrival(const Records& records, const FlightRecord& call, int64_t now) {
  if (const FlightRecord* record = find_call(records, call))
    return record->end_ns == 0 ? "arrived " + ago(now - record->start_ns)
                               : "left " + ago(now - record->end_ns);
  // Of one without records nothing is known: it may be a member that has not come.
  const bool is_member =
      records.empty() || std::ranges::any_of(records, [&](const FlightRecord& record) {
        return is_of_group(record, call);
      });
  return is_member ? "not arrived" : "not seen in it";
}

// "0-3, 7": of ascending numbers.
std::string ranges_text(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", ranks[i]);
    if (end - i > 1) text += fmt::format("-{}", ranks[end - 1]);
    i = end;
  }
  return text;
}

std::string last_call(const Records& records, int64_t now) {
  if (records.empty()) return "none";
  const FlightRecord& last = records.back();
  std::string text = describe_call(last.operation, last.group, last.sequence);
  if (last.bytes > 0) text += fmt::format(", {} bytes", last.bytes);
  return text + (last.end_ns == 0 ? "" : ", left " + ago(now - last.end_ns));
}

}  // namespace

std::string flight_table(const Arena& arena, int failed_rank) {
  std::vector<Records> flights;
  for (int rank = 0; rank < arena.shape().world_size; ++rank)
    flights.push_back(arena.flights(rank));
  const auto call = subject(arena, flights, failed_rank);
  if (!call) return "";
  const int64_t now = now_ns();
  std::string table = fmt::format("  rank  {:<21}  {:<52}  {:<14}  doing\n",
                                  describe_call(call->operation, call->group, call->sequence),
                                  "last collective", "last seen");
  for (int rank = 0; rank < arena.shape().world_size; ++rank)
    table += fmt::format(
        "  {:>4}  {:<{}}  {:<52}  {:<14}  {}\n", rank, arrival(flights[rank], *call, now),
        std::max<size_t>(21, describe_call(call->operation, call->group, call->sequence).size()),
        last_call(flights[rank], now), ago(silence_ns(arena, rank)),
        describe(arena.snapshot(rank)));
  return table;
}

std::string arrivals_text(const Arena& arena, const FlightRecord& call,
                          std::span<const int> ranks) {
  constexpr size_t kDescribed = 4;
  std::vector<int> arrived, missing;
  for (const int rank : ranks)
    (find_call(arena.flights(rank), call) != nullptr ? arrived : missing).push_back(rank);
  std::ranges::sort(arrived);
  std::ranges::sort(missing);
  std::string text = fmt::format(" Arrived: {}.", arrived.empty() ? "none" : ranges_text(arrived));
  if (missing.empty()) return text;
  text += " Not arrived: ";
  for (size_t i = 0; i < std::min(missing.size(), kDescribed); ++i)
    text += fmt::format("{}{} ({})", i == 0 ? "" : ", ", missing[i],
                        describe(arena.snapshot(missing[i])));
  if (missing.size() > kDescribed)
    text += fmt::format(", and {}", ranges_text({missing.begin() + kDescribed, missing.end()}));
  return text + ".";
}

}  // namespace troupe::comm
