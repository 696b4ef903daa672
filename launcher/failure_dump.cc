#include "launcher/failure_dump.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>

#include "comm/arena_layout.h"
#include "comm/crash.h"
#include "comm/trace_ring.h"
#include "launcher/report.h"
#include "launcher/symbols.h"

namespace troupe::launcher {
namespace {

using nlohmann::json;

// Of all ranks' collectives and trace events, each of which takes so much at most; the rest of a
// dump is small.
constexpr size_t kCollectiveBytes = size_t{8} << 20, kCollectiveRecordBytes = 420;
constexpr size_t kTraceBytes = size_t{4} << 20, kTraceRecordBytes = 420;
constexpr size_t kMostTraceEvents = 256;  // of a rank

// Times of a trace are converted from ticks, which is right to a fraction of a millisecond in a
// short launch: what seems to lie ahead has just happened.
double ms_between(int64_t ns, int64_t now_ns) {
  return std::max(0.0, static_cast<double>(now_ns - ns) * 1e-6);
}

json collective_json(const comm::FlightRecord& record, int64_t now_ns) {
  const auto ms_ago = [&](int64_t ns) { return ms_between(ns, now_ns); };
  json collective{{"operation", comm::operation_name(record.operation)},
                  {"group", record.group},
                  {"leader", record.leader},
                  {"sequence", record.sequence},
                  {"bytes", record.bytes},
                  {"start_ms_ago", ms_ago(record.start_ns)}};
  collective["end_ms_ago"] = record.end_ns == 0 ? json() : json(ms_ago(record.end_ns));
  return collective;
}

const char* event_name(const comm::TraceEvent& event) {
  if (event.kind == comm::TraceEvent::kSpan) return comm::trace_op(event.op()).name;
  return event.kind == comm::TraceEvent::kSent ? "sent" : "received";
}

json trace_json(const comm::TraceEvent& event, int64_t now_ns) {
  json entry{{"event", event_name(event)}, {"actor", comm::track_name(event.track)},
             {"step", event.step},         {"layer", event.layer},
             {"peer", event.peer},         {"tokens", event.tokens},
             {"bytes", event.bytes},       {"start_ms_ago", ms_between(event.start, now_ns)}};
  const bool ended = event.kind == comm::TraceEvent::kSpan && event.end != 0;
  entry["end_ms_ago"] = ended ? json(ms_between(event.end, now_ns)) : json();
  return entry;
}

// The last `most` events of a rank, less what counts something.
json last_trace_events(const comm::Arena& arena, int rank, size_t most, int64_t now_ns) {
  auto events = comm::read_trace(arena, rank, comm::TickClock(arena)).events;
  std::erase_if(events, [](const auto& event) { return event.kind == comm::TraceEvent::kCounter; });
  json entries = json::array();
  for (size_t i = events.size() - std::min(events.size(), most); i < events.size(); ++i)
    entries.push_back(trace_json(events[i], now_ns));
  return entries;
}

json crash_json(const comm::CrashReport& crash) {
  const char* name = ::sigabbrev_np(crash.signal);
  json stack = json::array();
  bool returned_to = false;  // a return address belongs to the call before it
  for (const comm::CrashFrame& frame : crash.frames) {
    const uint64_t looked_up = frame.address - (returned_to ? 1 : 0);
    stack.push_back({{"module", frame.module},
                     {"address", fmt::format("{:#x}", frame.address)},
                     {"function", function_at(frame.module, looked_up)}});
    returned_to = true;
  }
  return {{"signal", name == nullptr ? std::to_string(crash.signal) : fmt::format("SIG{}", name)},
          {"address", fmt::format("{:#x}", crash.fault_address)},
          {"stack", std::move(stack)}};
}

json rank_json(const LaunchView& launch, int rank) {
  const auto world = static_cast<size_t>(launch.arena.shape().world_size);
  const size_t most_collectives = kCollectiveBytes / kCollectiveRecordBytes / world;
  const int pid = launch.pids[rank];
  json entry = activity_json(launch.arena.snapshot(rank));
  entry.update({{"rank", rank},
                {"pid", pid},
                {"role", rank_role(launch.sizes, rank)},
                {"state", process_state(pid)},
                {"words", launch.arena.failure(rank)}});
  if (const auto crash = comm::crash_report(launch.arena, rank))
    entry["crash"] = crash_json(*crash);
  const auto flights = launch.arena.flights(rank);
  const int64_t now_ns = comm::now_ns();
  json& collectives = entry["collectives"] = json::array();
  for (size_t i = flights.size() - std::min(flights.size(), most_collectives); i < flights.size();
       ++i)
    collectives.push_back(collective_json(flights[i], now_ns));
  if (launch.arena.shape().trace.on())
    entry["trace"] = last_trace_events(
        launch.arena, rank, std::min(kMostTraceEvents, kTraceBytes / kTraceRecordBytes / world),
        now_ns);
  return entry;
}

}  // namespace

json failure_dump(const LaunchView& launch, const Failure& failure, const std::string& table) {
  json ranks = json::array();
  for (int rank = 0; rank < launch.arena.shape().world_size; ++rank)
    ranks.push_back(rank_json(launch, rank));
  return {{"line", failure_line(failure)},
          {"failure",
           {{"rank", failure.rank},
            {"pid", failure.pid},
            {"role", failure.role},
            {"what", failure.what},
            {"place", comm::describe(failure.place)},
            {"detail", failure.detail},
            {"waited_for_by", failure.waiters}}},
          {"table", table},
          {"ranks", std::move(ranks)}};
}

std::string write_failure_dump(const std::filesystem::path& directory, const json& dump) {
  if (directory.empty()) return "no dump: runtime_config.dump_dir is empty";
  const std::time_t now = std::time(nullptr);
  tm local{};
  ::localtime_r(&now, &local);
  const auto path =
      directory / fmt::format("troupe-dump-{:%Y%m%d-%H%M%S}-{}.json", local, ::getpid());
  try {
    write_json_file(path, dump);
    return "dump: " + path.string();
  } catch (const std::exception& error) {
    return fmt::format("no dump: {}", error.what());
  }
}

}  // namespace troupe::launcher
