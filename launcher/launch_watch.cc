#include "launcher/launch_watch.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "launcher/failure.h"

namespace troupe::launcher {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;

constexpr milliseconds kBetweenLooks{5};
constexpr double kAbsentShare = 0.99;
constexpr double kStragglerShare = 0.5;

comm::ArenaShape arena_shape(const json& description) {
  return {.world_size = description.at("world_size").get<int>(),
          .comm_buffer_bytes = description.at("comm_buffer_bytes").get<size_t>(),
          .trace = {.num_events = description.at("trace_events").get<int64_t>(),
                    .num_layers = description.at("trace_layers").get<int>(),
                    .num_experts = description.at("trace_experts").get<int>()}};
}

int64_t monotonic_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// This process' arguments, spaces between them.
std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string words(std::istreambuf_iterator<char>(file), {});
  if (!words.empty()) words.pop_back();
  std::ranges::replace(words, '\0', ' ');
  constexpr size_t kMost = 4096;
  return words.substr(0, kMost);
}

double resident_mb(int pid) {
  std::ifstream file(fmt::format("/proc/{}/statm", pid));
  double total = 0, resident = 0;
  file >> total >> resident;
  return resident * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

// Who holds up `rank` in the end: the last of its chain of waits; -1 if it does not wait.
int waits_for(const comm::Arena& arena, int rank) {
  const int world = arena.shape().world_size;
  int last = -1;
  for (int hops = 0; hops < world; ++hops) {
    const int next = arena.snapshot(last < 0 ? rank : last).waiting_for;
    if (next < 0 || next >= world) break;
    last = next;
  }
  return last == rank ? -1 : last;
}

}  // namespace

std::string launch_description(const model::ParallelSizes& sizes, const comm::ArenaShape& shape,
                               const std::vector<int>& pids) {
  return json{{"pid", ::getpid()},
              {"command", command_line()},
              {"started_ns", monotonic_ns()},
              {"world_size", sizes.world_size},
              {"attn_tp_size", sizes.attn_tp_size},
              {"moe_tp_size", sizes.moe_tp_size},
              {"comm_buffer_bytes", shape.comm_buffer_bytes},
              {"trace_events", shape.trace.num_events},
              {"trace_layers", shape.trace.num_layers},
              {"trace_experts", shape.trace.num_experts},
              {"ranks", pids}}
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

LaunchWatch::LaunchWatch(const LaunchAddress& address) try : LaunchWatch(ask_launch(address)) {
} catch (const UserError&) {
  throw;
} catch (const std::exception& error) {
  throw_user_error("launch {} was started by another version of troupe ({}); use that one",
                   address.pid, error.what());
}

LaunchWatch::LaunchWatch(LaunchDescription description)
    : LaunchWatch(json::parse(description.text), std::move(description.arena)) {}

LaunchWatch::LaunchWatch(const json& description, Fd arena)
    : pid_(description.at("pid").get<int>()),
      command_(description.at("command").get<std::string>()),
      started_ns_(description.at("started_ns").get<int64_t>()),
      sizes_{.world_size = description.at("world_size").get<int>(),
             .attn_tp_size = std::max(1, description.at("attn_tp_size").get<int>()),
             .moe_tp_size = std::max(1, description.at("moe_tp_size").get<int>())},
      pids_(description.at("ranks").get<std::vector<int>>()),
      arena_(comm::Arena::view(std::move(arena), arena_shape(description))) {
  pids_.resize(static_cast<size_t>(sizes_.world_size));
}

bool LaunchWatch::ended() const { return ::kill(pid_, 0) != 0; }

WatchedRank LaunchWatch::rank_status(int rank) const {
  WatchedRank status{.rank = rank,
                     .pid = pids_[static_cast<size_t>(rank)],
                     .role = rank_role(sizes_, rank),
                     .process = "",
                     .activity = arena_.snapshot(rank)};
  status.process = process_state(status.pid);
  status.rss_mb = resident_mb(status.pid);
  if (status.activity.operation == comm::Operation::kNone) return status;
  const auto flights = arena_.flights(rank);
  if (!flights.empty() && flights.back().end_ns == 0)
    status.in_collective_s = static_cast<double>(monotonic_ns() - flights.back().start_ns) * 1e-9;
  return status;
}

LaunchStatus LaunchWatch::look(milliseconds duration) const {
  const auto world = static_cast<size_t>(sizes_.world_size);
  std::vector<int> waited(world);
  int looks = 0;
  const auto until = std::chrono::steady_clock::now() + duration;
  for (; looks == 0 || std::chrono::steady_clock::now() < until; ++looks) {
    std::vector<char> is_waited_for(world);
    for (size_t rank = 0; rank < world; ++rank)
      if (const int whom = waits_for(arena_, static_cast<int>(rank)); whom >= 0)
        is_waited_for[static_cast<size_t>(whom)] = 1;
    for (size_t rank = 0; rank < world; ++rank) waited[rank] += is_waited_for[rank];
    std::this_thread::sleep_for(kBetweenLooks);
  }

  LaunchStatus status{.pid = pid_,
                      .command = command_,
                      .up_s = static_cast<double>(monotonic_ns() - started_ns_) * 1e-9,
                      .figures = arena_.figures(),
                      .ranks = {},
                      .absent = {}};
  double most = kStragglerShare;
  for (size_t rank = 0; rank < world; ++rank) {
    status.ranks.push_back(rank_status(static_cast<int>(rank)));
    const double share = static_cast<double>(waited[rank]) / looks;
    status.ranks.back().waited_for_share = share;
    if (share >= kAbsentShare) status.absent.push_back(static_cast<int>(rank));
    if (share > most) {
      most = share;
      status.straggler = static_cast<int>(rank);
    }
  }
  return status;
}

std::string status_text(const LaunchStatus& status) {
  std::string text = fmt::format(
      "launch {}, up {:.1f} s: {}\n"
      "requests: {} running, {} waiting; tokens: {} read, {} made; KV blocks: {} of {} in use\n\n"
      "{:>5} {:>8}  {:<22} {:<9} {:>8} {:>7}  doing\n",
      status.pid, status.up_s, status.command, status.figures.running, status.figures.waiting,
      status.figures.prompt_tokens, status.figures.new_tokens, status.figures.kv_blocks_in_use,
      status.figures.kv_blocks, "rank", "pid", "role", "process", "RSS MiB", "waited");
  for (const WatchedRank& rank : status.ranks) {
    text += fmt::format("{:>5} {:>8}  {:<22} {:<9} {:>8.1f} {:>5.0f} %  {}", rank.rank, rank.pid,
                        rank.role, rank.process, rank.rss_mb, rank.waited_for_share * 100,
                        comm::describe(rank.activity));
    text += rank.in_collective_s < 0 ? "\n" : fmt::format(", for {:.3f} s\n", rank.in_collective_s);
  }
  for (const int absent : status.absent) {
    std::vector<int> waiters;
    for (const WatchedRank& rank : status.ranks)
      if (rank.activity.waiting_for == absent) waiters.push_back(rank.rank);
    text += fmt::format("absent: rank {} ({}, in {}), waited for by rank{} {}\n", absent,
                        status.ranks[absent].process, comm::describe(status.ranks[absent].activity),
                        waiters.size() == 1 ? "" : "s", fmt::join(waiters, ", "));
  }
  if (status.absent.empty() && status.straggler >= 0)
    text += fmt::format("straggler: rank {}, for which others wait {:.0f} % of the time\n",
                        status.straggler, status.ranks[status.straggler].waited_for_share * 100);
  return text;
}

json status_json(const LaunchStatus& status) {
  json ranks = json::array();
  for (const WatchedRank& rank : status.ranks) {
    json entry = activity_json(rank.activity);
    entry.update({{"rank", rank.rank},
                  {"pid", rank.pid},
                  {"role", rank.role},
                  {"state", rank.process},
                  {"rss_mb", rank.rss_mb},
                  {"waited_for_share", rank.waited_for_share}});
    entry["in_collective_s"] = rank.in_collective_s < 0 ? json() : json(rank.in_collective_s);
    ranks.push_back(std::move(entry));
  }
  const comm::LaunchFigures& figures = status.figures;
  json launch{{"pid", status.pid},
              {"command", status.command},
              {"up_s", status.up_s},
              {"requests", {{"running", figures.running}, {"waiting", figures.waiting}}},
              {"tokens", {{"prompt", figures.prompt_tokens}, {"new", figures.new_tokens}}},
              {"kv_blocks", {{"in_use", figures.kv_blocks_in_use}, {"all", figures.kv_blocks}}},
              {"absent", status.absent},
              {"ranks", std::move(ranks)}};
  launch["straggler"] = status.straggler < 0 ? json() : json(status.straggler);
  return launch;
}

}  // namespace troupe::launcher
