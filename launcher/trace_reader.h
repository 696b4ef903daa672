// launcher/trace_reader.h: the files of a trace directory (launcher/trace_files.h), read back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::launcher {

struct SpanRecord {
  int64_t start_ns = 0, end_ns = 0;
  int64_t self_ns = 0;  // less the spans directly inside
  int64_t bytes = 0;
  int32_t name = 0;     // of TraceSet::names
  int32_t parent = -1;  // index of the span around it; across tracks, as the calls nest
  int32_t step = 0, layer = -1, tokens = 0, peer = -1;
  int32_t track = 0;  // comm::TraceTrack
};

struct ArrowRecord {
  int64_t ns = 0;
  std::string id;  // the same at both ends
  bool sent = false;
  int32_t step = 0, layer = -1, tokens = 0, peer = -1;
  int64_t bytes = 0;
};

struct CounterRecord {
  int64_t ns = 0;
  std::string name;
  double value = 0;
};

// One file.
struct ProcessTrace {
  int rank = -1;  // -1: the launcher
  int world_size = 0;
  int64_t forgotten = 0;                          // events that the ring no longer had
  std::vector<int64_t> sent_bytes;                // [world_size]
  std::vector<std::vector<int64_t>> expert_rows;  // [layers][experts]
  std::vector<SpanRecord> spans;                  // by start; outer ones first
  std::vector<ArrowRecord> arrows;
  std::vector<CounterRecord> counters;
};

struct TraceSet {
  struct Name {
    std::string text, category;  // "rms_norm", "compute"
  };
  std::vector<Name> names;
  std::vector<ProcessTrace> ranks;  // [world_size]
  ProcessTrace launcher;

  bool is(const SpanRecord& span, std::string_view name) const {
    return names[span.name].text == name;
  }
};

// UserError in one line for a directory that holds no trace, lacks the file of a rank, or holds a
// file that this program has not written: which, and what is wrong with it.
TraceSet read_traces(const std::filesystem::path& directory);

}  // namespace troupe::launcher
