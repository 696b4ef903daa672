#include "launcher/trace_files.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <tuple>

#include "base/error.h"
#include "base/output_path.h"
#include "comm/arena_layout.h"

namespace troupe::launcher {
namespace {

namespace fs = std::filesystem;
using comm::TraceEvent;

constexpr int64_t kEventsOfAll = int64_t{1} << 19;
constexpr int64_t kMostEvents = int64_t{1} << 16, kFewestEvents = int64_t{1} << 13;

// Perfetto gives process 0 a meaning of its own.
int process_id(int rank) { return rank + 2; }
int thread_id(int rank, comm::TraceTrack track) {
  return process_id(rank) * 10 + static_cast<int>(track);
}
std::string process_name(int rank) { return rank < 0 ? "launcher" : fmt::format("rank {}", rank); }

// The same at both ends of an arrow, and unlike any other's (splitmix64).
uint64_t arrow_id(const TraceEvent& event, int from, int to) {
  uint64_t hash = 0;
  for (const uint64_t part : {uint64_t{event.group}, static_cast<uint64_t>(event.end),
                              static_cast<uint64_t>(from), static_cast<uint64_t>(to)}) {
    hash = (hash ^ part) + 0x9e3779b97f4a7c15;
    hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9;
    hash = (hash ^ (hash >> 27)) * 0x94d049bb133111eb;
    hash ^= hash >> 31;
  }
  return hash;
}

class Writer {
 public:
  Writer(int rank, int world_size) : rank_(rank), world_size_(world_size) {}

  std::string file(const comm::TraceSnapshot& snapshot, int num_experts) {
    append("{{\"displayTimeUnit\":\"ms\",\n\"otherData\":");
    other_data(snapshot, num_experts);
    append(",\n\"traceEvents\":[\n");
    names(snapshot);
    for (const TraceEvent& event : closed(snapshot.events)) write(event);
    append("\n]}}\n");
    return fmt::to_string(text_);
  }

 private:
  template <class... Args>
  void append(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }

  void other_data(const comm::TraceSnapshot& snapshot, int num_experts) {
    append(
        "{{\"troupe_trace\":{},\"rank\":{},\"world_size\":{},\"forgotten_events\":{},"
        "\"sent_bytes\":[{}],\"expert_rows\":[",
        kTraceVersion, rank_, world_size_, snapshot.forgotten, fmt::join(snapshot.sent_bytes, ","));
    const auto experts = static_cast<size_t>(std::max(1, num_experts));
    for (size_t first = 0; first < snapshot.expert_rows.size(); first += experts)
      append(
          "{}[{}]", first == 0 ? "" : ",",
          fmt::join(snapshot.expert_rows.begin() + static_cast<ptrdiff_t>(first),
                    snapshot.expert_rows.begin() + static_cast<ptrdiff_t>(first + experts), ","));
    append("]}}");
  }

  void names(const comm::TraceSnapshot& snapshot) {
    const int pid = process_id(rank_);
    append(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":"{}"}}}})", pid,
           process_name(rank_));
    append(
        ",\n"
        R"({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})",
        pid, pid);
    std::array<bool, comm::kTraceTracks> used{};
    for (const TraceEvent& event : snapshot.events) used[static_cast<size_t>(event.track)] = true;
    for (int i = 0; i < comm::kTraceTracks; ++i) {
      if (!used[i]) continue;
      const auto track = static_cast<comm::TraceTrack>(i);
      append(
          ",\n"
          R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":"{}"}}}})",
          pid, thread_id(rank_, track), comm::track_name(track));
      append(
          ",\n"
          R"({{"ph":"M","name":"thread_sort_index","pid":{},"tid":{},)"
          R"("args":{{"sort_index":{}}}}})",
          pid, thread_id(rank_, track), i);
    }
  }

  // Spans that a rank was in when it ended last as long as what they lie in, or to its last event.
  // So do collectives that failed: they are left by an exception, and ended with the communicator.
  static std::vector<TraceEvent> closed(std::vector<TraceEvent> events) {
    int64_t last = 0;
    for (const TraceEvent& event : events) last = std::max({last, event.start, span_end(event)});
    std::vector<int64_t> ends;  // of the spans around the present one
    for (TraceEvent& event : events) {
      if (event.kind != TraceEvent::kSpan) continue;
      while (!ends.empty() && ends.back() <= event.start) ends.pop_back();
      const int64_t most = ends.empty() ? last : ends.back();
      const bool collective =
          comm::trace_op(event.op()).category == comm::TraceCategory::kCommunication;
      if (event.end == 0 || (collective && event.end > most)) event.end = most;
      ends.push_back(event.end);
    }
    return events;
  }
  static int64_t span_end(const TraceEvent& event) {
    return event.kind == TraceEvent::kSpan ? event.end : 0;
  }

  void write(const TraceEvent& event) {
    switch (event.kind) {
      case TraceEvent::kSpan:
        return write_span(event);
      case TraceEvent::kSent:
        return write_arrow(event, "\"ph\":\"s\"", arrow_id(event, rank_, event.peer));
      case TraceEvent::kReceived:
        return write_arrow(event, "\"ph\":\"f\",\"bp\":\"e\"", arrow_id(event, event.peer, rank_));
      case TraceEvent::kCounter:
        return write_counter(event);
    }
  }

  void begin(const TraceEvent& event, const char* name) {
    append(",\n{{\"name\":\"{}\",\"pid\":{},\"tid\":{},\"ts\":{}.{:03}", name, process_id(rank_),
           thread_id(rank_, event.track), event.start / 1000, event.start % 1000);
  }

  void write_span(const TraceEvent& event) {
    const comm::TraceOpInfo& op = comm::trace_op(event.op());
    const int64_t ns = event.end - event.start;
    begin(event, op.name);
    append(R"(,"ph":"X","cat":"{}","dur":{}.{:03},"args":{{"step":{})",
           comm::category_name(op.category), ns / 1000, ns % 1000, event.step);
    if (event.layer >= 0) append(",\"layer\":{}", event.layer);
    if (event.tokens > 0) append(",\"tokens\":{}", event.tokens);
    if (event.bytes > 0) append(",\"bytes\":{}", event.bytes);
    if (event.peer >= 0) append(",\"peer\":{}", event.peer);
    append("}}}}");
    if (event.op() == comm::TraceOp::kExperts) {
      begin(event, "expert_rows");
      append(R"(,"ph":"C","args":{{"rows":{}}}}})", event.tokens);
    }
  }

  void write_arrow(const TraceEvent& event, const char* phase, uint64_t id) {
    begin(event, "dispatch");
    append(R"(,{},"cat":"dispatch","id":"0x{:x}","args":{{"step":{},"layer":{},"tokens":{},)"
           R"("bytes":{},"peer":{}}}}})",
           phase, id, event.step, event.layer, event.tokens, event.bytes, event.peer);
  }

  void write_counter(const TraceEvent& event) {
    const std::string name =
        event.peer < 0 ? comm::counter_name(event.counter())
                       : fmt::format("{} {}", comm::counter_name(event.counter()), event.peer);
    begin(event, name.c_str());
    append(R"(,"ph":"C","args":{{"{}":{}}}}})", comm::counter_name(event.counter()), event.end);
  }

  int rank_, world_size_;
  fmt::memory_buffer text_;
};

}  // namespace

int64_t trace_events(int world_size) {
  const auto share = static_cast<uint64_t>(kEventsOfAll / world_size);
  return std::clamp(static_cast<int64_t>(std::bit_floor(share)), kFewestEvents, kMostEvents);
}

fs::path trace_file(const fs::path& directory, int rank) {
  return directory / fmt::format("rank-{}.trace.json", rank);
}

fs::path launcher_trace_file(const fs::path& directory) {
  return directory / "launcher.trace.json";
}

void make_trace_directory(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (!fs::is_directory(directory))
    throw_user_error("{}: the directory of the trace cannot be made ({})", directory.string(),
                     error ? error.message() : "it is a file");
  require_output_path(launcher_trace_file(directory));
}

std::string trace_json(const comm::TraceSnapshot& snapshot, int rank, int world_size,
                       int num_experts) {
  return Writer(rank, world_size).file(snapshot, num_experts);
}

void write_trace_files(const comm::Arena& arena, const fs::path& directory) {
  const int world_size = arena.shape().world_size;
  const comm::TickClock clock(arena);
  const auto json = [&](int ring, int rank) {
    return trace_json(comm::read_trace(arena, ring, clock), rank, world_size,
                      arena.shape().trace.num_experts);
  };
  static const std::regex rank_file("rank-(0|[1-9][0-9]{0,5})\\.trace\\.json");
  for (const auto& entry : fs::directory_iterator(directory))
    if (std::regex_match(entry.path().filename().string(), rank_file)) fs::remove(entry.path());
  for (int rank = 0; rank < world_size; ++rank)
    replace_file(trace_file(directory, rank), json(rank, rank));
  replace_file(launcher_trace_file(directory), json(world_size, -1));
}

std::string merged_trace(const fs::path& directory, int world_size) {
  fmt::memory_buffer text;
  fmt::format_to(
      std::back_inserter(text),
      "{{\"displayTimeUnit\":\"ms\",\n\"otherData\":{{\"merged_ranks\":{}}},\n\"traceEvents\":[",
      world_size);
  const char* separator = "\n";
  const auto add_events = [&](const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ignore = nlohmann::json::parse(
        file, [&](int depth, nlohmann::json::parse_event_t what, nlohmann::json& event) {
          if (depth != 2 || what != nlohmann::json::parse_event_t::object_end) return true;
          fmt::format_to(std::back_inserter(text), "{}{}", separator, event.dump());
          separator = ",\n";
          return false;
        });
  };
  add_events(launcher_trace_file(directory));
  for (int rank = 0; rank < world_size; ++rank) add_events(trace_file(directory, rank));
  fmt::format_to(std::back_inserter(text), "\n]}}\n");
  return fmt::to_string(text);
}

}  // namespace troupe::launcher
