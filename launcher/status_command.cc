// `troupe status` and `troupe top`: what running launches of this user do.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "launcher/commands.h"
#include "launcher/launch_watch.h"

namespace troupe::launcher {
namespace {

constexpr std::chrono::milliseconds kLookFor{500};

// Those asked for: all of this user, or the one with that pid.
std::vector<LaunchAddress> chosen_launches(int pid) {
  std::vector<LaunchAddress> launches = find_launches();
  if (pid == 0) {
    if (launches.empty())
      throw_user_error("no launch of this user is running (in this container, if it is one)");
    return launches;
  }
  std::vector<int> others;
  for (const LaunchAddress& launch : launches) others.push_back(launch.pid);
  std::erase_if(launches, [&](const LaunchAddress& launch) { return launch.pid != pid; });
  if (launches.empty())
    throw_user_error("process {} is no launch of this user; running are: {}", pid,
                     others.empty() ? "none" : fmt::format("{}", fmt::join(others, ", ")));
  return launches;
}

}  // namespace

void status_command(const StatusArguments& arguments) {
  nlohmann::json all = nlohmann::json::array();
  std::string text;
  for (const LaunchAddress& launch : chosen_launches(arguments.pid)) {
    const LaunchStatus status = LaunchWatch(launch).look(kLookFor);
    all.push_back(status_json(status));
    text += fmt::format("{}{}", text.empty() ? "" : "\n", status_text(status));
  }
  if (arguments.json)
    text = all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::fputs(text.c_str(), stdout);
}

void top_command(const TopArguments& arguments) {
  const auto launches = chosen_launches(arguments.pid);
  if (launches.size() > 1)
    throw_user_error("{} launches are running; name one by its process: troupe top {}",
                     launches.size(), launches.front().pid);
  const LaunchWatch watch(launches.front());
  const char* clear = ::isatty(STDOUT_FILENO) == 1 ? "\033[H\033[J" : "";
  const std::chrono::milliseconds interval(static_cast<int64_t>(arguments.interval_s * 1000));
  comm::LaunchFigures before = watch.look(std::chrono::milliseconds(0)).figures;
  auto since = std::chrono::steady_clock::now();
  for (int i = 0; (arguments.count == 0 || i < arguments.count) && !watch.ended(); ++i) {
    const LaunchStatus status = watch.look(interval);
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - since).count();
    const auto rate = [&](uint64_t new_count, uint64_t old_count) {
      return static_cast<double>(new_count - old_count) / seconds;
    };
    fmt::print("{}{}tokens/s: {:.1f} read, {:.1f} made\n", clear, status_text(status),
               rate(status.figures.prompt_tokens, before.prompt_tokens),
               rate(status.figures.new_tokens, before.new_tokens));
    std::fflush(stdout);
    before = status.figures;
    since = now;
  }
}

}  // namespace troupe::launcher
