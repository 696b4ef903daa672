// launcher/trace_files.h: the files of a trace: one Chrome trace per rank (the JSON object format
// of "Trace Event Format", Google 2016), as Perfetto and chrome://tracing open it, and one of the
// launcher.
//
//   DIR/rank-0.trace.json, rank-1.trace.json, ..., launcher.trace.json
//
// A process per rank, a thread per actor. Complete events ("X") for spans, flow events ("s", "f")
// for dispatched rows, counters ("C"). Times are CLOCK_MONOTONIC in microseconds with three digits
// of nanoseconds, the same clock in all files. `otherData` has what is no event: of which rank of
// how many, events that the ring has forgotten, bytes sent to each rank and rows computed by each
// expert in the whole run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "comm/arena.h"
#include "comm/trace_ring.h"

namespace troupe::launcher {

inline constexpr int kTraceVersion = 1;  // of otherData.troupe_trace

// Events that each ring keeps: 3 MB of memory and 10 MB of file for each rank, up to 8 ranks; more
// ranks share as much, but each gets enough for some steps.
int64_t trace_events(int world_size);

std::filesystem::path trace_file(const std::filesystem::path& directory, int rank);
std::filesystem::path launcher_trace_file(const std::filesystem::path& directory);

// Makes the directory if there is none. UserError unless files can be written there.
void make_trace_directory(const std::filesystem::path& directory);

// Writes all files, once every writer has ended. Those of an earlier trace are replaced or, of
// ranks that there are no longer, removed. UserError when the directory cannot be written.
void write_trace_files(const comm::Arena& arena, const std::filesystem::path& directory);

// The events of all files of a launch as one Chrome trace. The files are known to be whole
// (launcher/trace_reader.h).
std::string merged_trace(const std::filesystem::path& directory, int world_size);

// What one file holds. rank -1: of the launcher.
std::string trace_json(const comm::TraceSnapshot& snapshot, int rank, int world_size,
                       int num_experts);

}  // namespace troupe::launcher
