// base/log.h: what a process tells of itself while it runs: lines for people or JSON for programs,
// on stderr or in a file of a directory.
//
// A line belongs to a subsystem and, where it is about one, to an actor, a step, a request. Nothing
// is logged inside a step; between two of them at level debug only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace troupe {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

struct LogOptions {
  std::string level = "info";           // debug, info, warn, error, off
  std::string format = "text";          // text, json
  std::vector<std::string> subsystems;  // only these; empty: all
  std::filesystem::path directory;      // a file for each process; empty: none

  static const std::vector<std::string> kLevels, kFormats;
  // launcher (start, end, notes), scheduler (requests), rank (a rank's life and its steps).
  static const std::vector<std::string> kSubsystems;
  // As arguments of `troupe`, for the ranks.
  std::vector<std::string> arguments() const;
};

// Once per process, before anything is logged. Rank -1 is the launcher: it writes to stderr, and to
// launcher.log of the directory if there is one. A rank writes to rank_N.log; nowhere without a
// directory. UserError when the file cannot be made.
void start_log(const LogOptions& options, int rank);
const LogOptions& log_options();  // those of start_log()

struct LogFields {
  std::string_view actor = {};      // "attention"
  int64_t step = -1, request = -1;  // -1: of none
};
bool logs(LogLevel level, std::string_view subsystem);
void log(LogLevel level, std::string_view subsystem, std::string_view text,
         const LogFields& fields = {});
// To the file alone: of what stderr is told in words of its own.
void log_to_file(LogLevel level, std::string_view subsystem, std::string_view text);

}  // namespace troupe
