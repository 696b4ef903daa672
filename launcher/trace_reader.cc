#include "launcher/trace_reader.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "comm/trace.h"
#include "launcher/trace_files.h"

namespace troupe::launcher {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class NotATrace : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Far above what a launch can count, and small enough that sums of them fit.
constexpr int64_t kMostCount = int64_t{1} << 48;

int64_t count_of(const json& value, const char* name) {
  const bool unsigned_too_large =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kMostCount);
  if (!value.is_number_integer() || unsigned_too_large || value.get<int64_t>() < 0)
    throw NotATrace(fmt::format("{} is no number from 0 to {}", name, kMostCount));
  return value.get<int64_t>();
}

std::vector<int64_t> counts_of(const json& list, const char* name) {
  if (!list.is_array()) throw NotATrace(fmt::format("{} is no list", name));
  std::vector<int64_t> counts;
  for (const json& value : list) counts.push_back(count_of(value, name));
  return counts;
}

// From microseconds, which a double holds to the nanosecond for a hundred days.
int64_t nanoseconds(const json& event, const char* key) {
  const double us = event.at(key).get<double>();
  if (!(us >= 0 && us < 1e13)) throw NotATrace(fmt::format("{} is {}", key, us));
  return std::llround(us * 1000);
}

// -1 stands for none.
int32_t small_integer(const json& value, const char* name) {
  const bool integer = value.is_number_integer() &&
                       (!value.is_number_unsigned() || value.get<uint64_t>() <= INT32_MAX);
  if (!integer || value.get<int64_t>() < -1 || value.get<int64_t>() > INT32_MAX)
    throw NotATrace(fmt::format("{} is no number from -1 to {}", name, INT32_MAX));
  return value.get<int32_t>();
}

int32_t argument(const json& args, const char* key, int32_t missing) {
  const auto found = args.find(key);
  return found == args.end() ? missing : small_integer(*found, key);
}

class Reader {
 public:
  explicit Reader(TraceSet& set) : set_(set) {}

  ProcessTrace read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || fs::is_directory(path))
      throw_user_error(
          "{}: is missing or cannot be read: a trace has one file per rank and one of "
          "the launcher",
          path.string());
    trace_ = {};
    num_events_ = 0;
    try {
      // Events are taken one by one: a document of all of them would be ten times the file.
      const json rest = json::parse(file, [&](int depth, json::parse_event_t what, json& parsed) {
        if (depth != 2 || what != json::parse_event_t::object_end) return true;
        take_event(parsed);
        return false;
      });
      take_other_data(rest.at("otherData"));
      nest();
    } catch (const std::exception& error) {
      throw_user_error("{}: is not a trace that troupe has written ({})", path.string(),
                       first_line(error.what()));
    }
    return std::move(trace_);
  }

 private:
  static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

  void take_event(const json& event) {
    ++num_events_;
    const auto phase = event.at("ph").get<std::string>();
    if (phase == "M") return;
    if (phase == "X") return take_span(event);
    if (phase == "s" || phase == "f") return take_arrow(event, phase == "s");
    if (phase == "C") return take_counter(event);
    throw NotATrace(fmt::format("event {} has the phase \"{}\"", num_events_, phase));
  }

  void take_span(const json& event) {
    const json& args = event.at("args");
    SpanRecord span{.start_ns = nanoseconds(event, "ts"),
                    .bytes = args.contains("bytes") ? count_of(args["bytes"], "bytes") : 0,
                    .name = name_of(event),
                    .step = argument(args, "step", 0),
                    .layer = argument(args, "layer", -1),
                    .tokens = argument(args, "tokens", 0),
                    .peer = argument(args, "peer", -1),
                    .track = small_integer(event.at("tid"), "tid") % 10};
    if (span.track < 0 || span.track >= comm::kTraceTracks) throw NotATrace("a tid of no actor");
    span.end_ns = span.start_ns + nanoseconds(event, "dur");
    trace_.spans.push_back(span);
  }

  void take_arrow(const json& event, bool sent) {
    const json& args = event.at("args");
    trace_.arrows.push_back({.ns = nanoseconds(event, "ts"),
                             .id = event.at("id").get<std::string>(),
                             .sent = sent,
                             .step = small_integer(args.at("step"), "step"),
                             .layer = small_integer(args.at("layer"), "layer"),
                             .tokens = small_integer(args.at("tokens"), "tokens"),
                             .peer = small_integer(args.at("peer"), "peer"),
                             .bytes = count_of(args.at("bytes"), "bytes")});
  }

  void take_counter(const json& event) {
    for (const auto& [key, value] : event.at("args").items())
      trace_.counters.push_back({nanoseconds(event, "ts"), event.at("name"), value.get<double>()});
  }

  int32_t name_of(const json& event) {
    const auto name = event.at("name").get<std::string>();
    const auto [known, added] = known_.try_emplace(name, static_cast<int32_t>(set_.names.size()));
    if (added) set_.names.push_back({name, event.at("cat").get<std::string>()});
    return known->second;
  }

  void take_other_data(const json& other) {
    if (other.at("troupe_trace") != kTraceVersion)
      throw NotATrace(fmt::format("its version is {}", other.at("troupe_trace").dump()));
    trace_.rank = small_integer(other.at("rank"), "rank");
    trace_.world_size = small_integer(other.at("world_size"), "world_size");
    trace_.forgotten = count_of(other.at("forgotten_events"), "forgotten_events");
    trace_.sent_bytes = counts_of(other.at("sent_bytes"), "sent_bytes");
    for (const json& layer : other.at("expert_rows"))
      trace_.expert_rows.push_back(counts_of(layer, "expert_rows"));
    if (trace_.world_size < 1 || trace_.world_size > (1 << 16) || trace_.rank < -1 ||
        trace_.rank >= trace_.world_size)
      throw NotATrace(fmt::format("rank {} of {}", trace_.rank, trace_.world_size));
    trace_.sent_bytes.resize(trace_.world_size);
  }

  // Finds each span's parent, and what time is its own.
  void nest() {
    std::vector<SpanRecord>& spans = trace_.spans;
    std::vector<int32_t> around;
    for (size_t i = 0; i < spans.size(); ++i) {
      SpanRecord& span = spans[i];
      while (!around.empty() && spans[around.back()].end_ns <= span.start_ns) around.pop_back();
      span.self_ns = span.end_ns - span.start_ns;
      if (!around.empty()) {
        SpanRecord& parent = spans[around.back()];
        if (span.start_ns < parent.start_ns || span.end_ns > parent.end_ns)
          throw NotATrace(
              fmt::format("span {} of {} does not lie inside its parent", i, spans.size()));
        span.parent = around.back();
        parent.self_ns -= span.self_ns;
      }
      around.push_back(static_cast<int32_t>(i));
    }
  }

  TraceSet& set_;
  std::map<std::string, int32_t> known_;
  ProcessTrace trace_;
  int64_t num_events_ = 0;
};

}  // namespace

TraceSet read_traces(const fs::path& directory) {
  if (!fs::exists(trace_file(directory, 0)))
    throw_user_error("{}: there is no {} in it: name the directory that --trace was given",
                     directory.string(), trace_file(directory, 0).filename().string());
  TraceSet set;
  Reader reader(set);
  set.ranks.push_back(reader.read(trace_file(directory, 0)));
  const int world_size = set.ranks[0].world_size;
  for (int rank = 1; rank < world_size; ++rank)
    set.ranks.push_back(reader.read(trace_file(directory, rank)));
  set.launcher = reader.read(launcher_trace_file(directory));
  for (int rank = 0; rank < world_size; ++rank)
    if (set.ranks[rank].rank != rank || set.ranks[rank].world_size != world_size)
      throw_user_error("{}: says that it is rank {} of {}: files of two launches are mixed",
                       trace_file(directory, rank).string(), set.ranks[rank].rank,
                       set.ranks[rank].world_size);
  return set;
}

}  // namespace troupe::launcher
