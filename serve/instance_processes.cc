#include "serve/instance_processes.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace troupe::serve {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPause{1000};    // before one is started again
constexpr milliseconds kEarly{10'000};  // an end so soon after the start is an early one
constexpr int kMostEarlyEnds = 3;
constexpr milliseconds kStopGrace{15'000};

// It logs as this process does; to files in a directory of its own beside this one's.
std::vector<std::string> log_arguments(const std::string& name) {
  LogOptions log = log_options();
  if (log.directory.empty()) return {"--log-level", log.level};
  log.directory /= name;
  std::filesystem::create_directories(log.directory);
  return log.arguments();
}

}  // namespace

InstanceProcesses::InstanceProcesses(std::vector<Command> commands) {
  for (Command& command : commands) {
    Child& child = children_.emplace_back();
    child.command = std::move(command);
  }
  for (Child& child : children_) start(child);
}

InstanceProcesses::~InstanceProcesses() {
  for (const Child& child : children_) {
    if (child.pid < 0) continue;
    ::kill(child.pid, SIGKILL);
    ::waitpid(child.pid, nullptr, 0);
  }
}

// Signals as in a fresh shell, descriptors 0, 1, 2 alone; what it prints goes to stderr.
void InstanceProcesses::start(Child& child) const {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<std::string> words = log_arguments(child.command.name);
  words.insert(words.end(), child.command.words.begin(), child.command.words.end());
  std::string program = "troupe";
  std::vector<char*> argv{program.data()};
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int error =
      ::posix_spawn(&child.pid, "/proc/self/exe", &actions, &attributes, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error == 0) {
    child.started = steady_clock::now();
    return;
  }
  child.pid = -1;
  throw_user_error("the {} instance cannot be started: {}; see `ulimit -a`", child.command.name,
                   std::strerror(error));
}

void InstanceProcesses::look() {
  for (Child& child : children_) {
    int status = 0;
    if (child.pid >= 0 && ::waitpid(child.pid, &status, WNOHANG) == child.pid)
      on_end(child, status);
    if (child.pid < 0 && steady_clock::now() - child.ended >= kPause) start(child);
  }
}

void InstanceProcesses::on_end(Child& child, int status) {
  const std::string& name = child.command.name;
  child.pid = -1;
  child.ended = steady_clock::now();
  if (WIFEXITED(status) && WEXITSTATUS(status) == kExitUserError)
    throw_user_error("the {} instance cannot run: its own message says why", name);
  child.early_ends = child.ended - child.started < kEarly ? child.early_ends + 1 : 0;
  if (child.early_ends == kMostEarlyEnds)
    throw_rank_error("the {} instance has ended {} times in a row within {} s of its start", name,
                     kMostEarlyEnds, kEarly.count() / 1000);
  spdlog::warn("the {} instance {} {}; it is started again", name,
               WIFEXITED(status) ? "ended with status" : "was killed by signal",
               WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

void InstanceProcesses::stop() {
  for (const Child& child : children_)
    if (child.pid >= 0) ::kill(child.pid, SIGTERM);
  const auto end = steady_clock::now() + kStopGrace;
  for (Child& child : children_)
    while (child.pid >= 0 && steady_clock::now() < end) {
      if (::waitpid(child.pid, nullptr, WNOHANG) == child.pid)
        child.pid = -1;
      else
        std::this_thread::sleep_for(milliseconds(5));
    }
}

}  // namespace troupe::serve
