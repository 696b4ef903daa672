#include "launcher/failure_dump.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>

#include "comm/crash.h"
#include "launcher/report.h"
#include "launcher/symbols.h"

namespace troupe::launcher {
namespace {

using nlohmann::json;

// Of collectives, each of which takes kRecordBytes at most; the rest of a dump is small.
constexpr size_t kCollectiveBytes = size_t{10} << 20;
constexpr size_t kRecordBytes = 420;

json collective_json(const comm::FlightRecord& record, int64_t now_ns) {
  const auto ms_ago = [&](int64_t ns) { return static_cast<double>(now_ns - ns) * 1e-6; };
  json collective{{"operation", comm::operation_name(record.operation)},
                  {"group", record.group},
                  {"leader", record.leader},
                  {"sequence", record.sequence},
                  {"bytes", record.bytes},
                  {"start_ms_ago", ms_ago(record.start_ns)}};
  collective["end_ms_ago"] = record.end_ns == 0 ? json() : json(ms_ago(record.end_ns));
  return collective;
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

json rank_json(const LaunchView& launch, int rank, size_t most_collectives) {
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
  timespec clock{};
  ::clock_gettime(CLOCK_MONOTONIC, &clock);
  const int64_t now_ns = int64_t{clock.tv_sec} * 1'000'000'000 + clock.tv_nsec;
  json& collectives = entry["collectives"] = json::array();
  for (size_t i = flights.size() - std::min(flights.size(), most_collectives); i < flights.size();
       ++i)
    collectives.push_back(collective_json(flights[i], now_ns));
  return entry;
}

}  // namespace

json failure_dump(const LaunchView& launch, const Failure& failure, const std::string& table) {
  const auto world = static_cast<size_t>(launch.arena.shape().world_size);
  json ranks = json::array();
  for (size_t rank = 0; rank < world; ++rank)
    ranks.push_back(
        rank_json(launch, static_cast<int>(rank), kCollectiveBytes / kRecordBytes / world));
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
