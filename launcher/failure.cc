#include "launcher/failure.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/layout_table.h"
#include "launcher/rank_memory.h"

namespace troupe::launcher {
namespace {

// It does nothing until SIGCONT, or until a debugger lets it.
bool is_stopped(int pid) {
  const std::string state = process_state(pid);
  return state == "stopped" || state == "tracing stop";
}

// `blamed` where it is stopped, else the first rank that is, else -1.
int stopped_rank(const LaunchView& launch, int blamed) {
  if (blamed >= 0 && is_stopped(launch.pids[blamed])) return blamed;
  for (int rank = 0; rank < launch.arena.shape().world_size; ++rank)
    if (is_stopped(launch.pids[rank])) return rank;
  return -1;
}

Failure about(const LaunchView& launch, int rank) {
  Failure failure{.rank = rank,
                  .pid = launch.pids[rank],
                  .role = rank_role(launch.sizes, rank),
                  .what = "",
                  .place = launch.arena.snapshot(rank),
                  .detail = "",
                  .waiters = {}};
  for (int other = 0; other < launch.arena.shape().world_size; ++other)
    if (other != rank && launch.arena.snapshot(other).waiting_for == rank)
      failure.waiters.push_back(other);
  return failure;
}

constexpr const char* kRaiseLimit = "on a loaded machine raise runtime_config.comm_timeout_s";

Failure stopped(const LaunchView& launch, int rank) {
  Failure failure = about(launch, rank);
  failure.what = "is stopped (by SIGSTOP or a debugger)";
  return failure;
}

// Who holds up the others: one that works and waits for nobody, else the end of a chain of waits,
// else one that has not begun.
int rank_that_holds_up(const comm::Arena& arena) {
  const int world = arena.shape().world_size;
  int first_busy = 0;
  for (int rank = world - 1; rank >= 0; --rank) {
    const comm::ActivitySnapshot now = arena.snapshot(rank);
    if (now.stage == comm::Stage::kIdle) continue;
    if (now.waiting_for < 0) return rank;
    first_busy = rank;
  }
  int last = first_busy;
  for (int hops = 0; hops < world; ++hops) {
    const int next = arena.snapshot(last).waiting_for;
    if (next < 0 || next >= world) break;
    last = next;
  }
  return last;
}

std::string out_of_memory(const LaunchView& launch) {
  const auto kills = kernel_oom_kills();
  if (!kills || !launch.oom_kills_at_start)
    return "if nobody did that, the kernel did for want of memory (see dmesg)";
  if (*kills == *launch.oom_kills_at_start) return "";
  return fmt::format(
      "by the kernel, out of memory: the limit is {}; `troupe check` says what ranks need, "
      "scheduler_config.batch_size and parallel_config change it",
      bytes_text(static_cast<double>(machine_bytes())));
}

}  // namespace

std::optional<uint64_t> kernel_oom_kills() {
  std::ifstream file("/proc/vmstat");
  std::string name;
  for (uint64_t value = 0; file >> name >> value;)
    if (name == "oom_kill") return value;
  return std::nullopt;
}

std::string process_state(int pid) {
  std::ifstream file(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(file, line);) {
    const size_t open = line.find('('), close = line.find(')');
    if (line.starts_with("State:") && open < close && close != std::string::npos)
      return line.substr(open + 1, close - open - 1);
  }
  return "gone";
}

nlohmann::json activity_json(const comm::ActivitySnapshot& activity) {
  return {{"stage", comm::stage_name(activity.stage)},
          {"step", activity.step},
          {"layer", activity.layer},
          {"operation", comm::operation_name(activity.operation)},
          {"group", activity.group},
          {"sequence", activity.sequence},
          {"waiting_for", activity.waiting_for}};
}

std::string rank_role(const model::ParallelSizes& sizes, int rank) {
  std::string role = fmt::format("DP {}", rank / sizes.attn_tp_size);
  if (sizes.attn_tp_size > 1) role += fmt::format(", TP {}", rank % sizes.attn_tp_size);
  role += fmt::format(", EP {}", rank / sizes.moe_tp_size);
  if (sizes.moe_tp_size > 1) role += fmt::format(", ETP {}", rank % sizes.moe_tp_size);
  return role;
}

Failure failure_of_exit(const LaunchView& launch, const RankExit& exit) {
  const std::string words = launch.arena.failure(exit.rank);
  if (exit.signal == 0 && !words.empty()) return failure_of_words(launch, exit.rank, words);
  Failure failure = about(launch, exit.rank);
  failure.what = describe(exit);
  if (exit.signal == SIGKILL) failure.detail = out_of_memory(launch);
  return failure;
}

Failure failure_of_words(const LaunchView& launch, int rank, const std::string& words) {
  const int blamed = launch.arena.blamed(rank);
  const int culprit = blamed >= 0 ? stopped_rank(launch, blamed) : -1;
  if (culprit >= 0) return stopped(launch, culprit);
  const comm::ActivitySnapshot place = launch.arena.snapshot(rank);
  const std::string prefix = comm::error_prefix(rank, place);
  // Without the rank's list of who has arrived: the table below the line has more of that.
  const std::string published = launch.arena.failure(rank);
  std::string detail = !published.empty() && words.starts_with(published) ? published : words;
  if (detail.starts_with(prefix)) detail = detail.substr(prefix.size());
  Failure failure = about(launch, blamed >= 0 ? blamed : rank);
  failure.what = blamed >= 0 ? "did not come in time" : "failed";
  failure.detail =
      blamed >= 0 ? fmt::format("rank {} in {} {}", rank, comm::describe(place), detail) : detail;
  return failure;
}

Failure failure_of_stall(const LaunchView& launch, double stalled_s) {
  const int suspect = rank_that_holds_up(launch.arena);
  const int culprit = stopped_rank(launch, suspect);
  if (culprit >= 0) return stopped(launch, culprit);
  Failure failure = about(launch, suspect);
  failure.what = fmt::format("made no progress for {:.1f} s", stalled_s);
  failure.detail = kRaiseLimit;
  return failure;
}

std::string failure_line(const Failure& failure) {
  // Whom it waits for is no more than a hint where it is at fault itself.
  comm::ActivitySnapshot place = failure.place;
  if (!failure.detail.empty()) place.waiting_for = -1;
  std::string line = fmt::format("rank {} (pid {}, {}) {} in {}", failure.rank, failure.pid,
                                 failure.role, failure.what, comm::describe(place));
  if (!failure.detail.empty()) line += ": " + failure.detail;
  if (!failure.waiters.empty())
    line += fmt::format("; waited for by rank{} {}", failure.waiters.size() > 1 ? "s" : "",
                        fmt::join(failure.waiters, ", "));
  return line;
}

}  // namespace troupe::launcher
