#include "launcher/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/error.h"

namespace troupe::launcher {
namespace {

using Clock = std::chrono::steady_clock;

std::string limit_text(int resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur);
}

[[noreturn]] void throw_refused(int rank, const char* call, int error) {
  std::string advice = "see `ulimit -a`";
  if (error == EAGAIN) {
    advice = fmt::format(
        "the limit of processes is reached: RLIMIT_NPROC is {} (raise it with ulimit -u, or "
        "pids.max of the container)",
        limit_text(RLIMIT_NPROC));
  } else if (error == EMFILE || error == ENFILE) {
    advice = fmt::format(
        "the limit of open files is reached: RLIMIT_NOFILE is {} (raise it with ulimit -n)",
        limit_text(RLIMIT_NOFILE));
  } else if (error == ENOMEM) {
    advice = "the machine is out of memory; use a smaller parallel_config.world_size";
  } else if (error == ENOSYS) {
    advice = "Linux 5.4 or newer is needed";
  }
  throw_user_error("rank {} cannot be started: {}: {}; {}", rank, call, std::strerror(error),
                   advice);
}

// How a rank begins: signals as in a fresh shell, descriptors 0, 1, 2 and `inherited` alone.
class SpawnPlan {
 public:
  // Each of `inherited` has a number above every target: see lift_above_targets.
  explicit SpawnPlan(const std::vector<Fd>& inherited) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
    int error = posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!error) error = posix_spawn_file_actions_adddup2(&actions_, STDERR_FILENO, STDOUT_FILENO);
    int target = Supervisor::kFirstFd;
    for (const Fd& fd : inherited) {
      if (!error) error = posix_spawn_file_actions_adddup2(&actions_, fd.get(), target++);
    }
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&actions_, target);
    if (error) throw_refused(0, "posix_spawn_file_actions", error);

    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  int start(int rank, const std::vector<std::string>& arguments) const {
    std::vector<std::string> words{"troupe", "rank", "--rank", std::to_string(rank)};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_t pid = 0;
    const int error =
        posix_spawn(&pid, "/proc/self/exe", &actions_, &attributes_, argv.data(), environ);
    if (error) throw_refused(rank, "posix_spawn", error);
    return pid;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

// Copies with numbers above every target, so that no dup2 in the child overwrites a source that a
// later one needs.
std::vector<Fd> lift_above_targets(const std::vector<int>& inherited) {
  const int first_free = Supervisor::kFirstFd + static_cast<int>(inherited.size());
  std::vector<Fd> lifted;
  for (const int fd : inherited) {
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, first_free);
    if (copy < 0) throw_refused(0, "fcntl(F_DUPFD_CLOEXEC)", errno);
    lifted.emplace_back(copy);
  }
  return lifted;
}

// How a child ended, or nothing while it runs (only with WNOHANG).
std::optional<RankExit> wait_for(int rank, int pid, int pidfd, int options) {
  siginfo_t info{};
  int result;
  do {
    result = waitid(P_PIDFD, static_cast<id_t>(pidfd), &info, WEXITED | options);
  } while (result != 0 && errno == EINTR);
  TROUPE_CHECK(result == 0, "{} of rank {}", errno_text("waitid"), rank);
  if (info.si_pid == 0) return std::nullopt;
  RankExit exit{.rank = rank, .pid = pid};
  (info.si_code == CLD_EXITED ? exit.exit_status : exit.signal) = info.si_status;
  return exit;
}

}  // namespace

std::string describe(const RankExit& exit) {
  if (exit.signal == 0) return fmt::format("exited with status {}", exit.exit_status);
  const char* name = sigabbrev_np(exit.signal);
  if (name == nullptr) return fmt::format("was killed by signal {}", exit.signal);
  return fmt::format("was killed by SIG{} (signal {})", name, exit.signal);
}

Supervisor::~Supervisor() { stop_all(std::chrono::milliseconds(0)); }

void Supervisor::spawn(int world_size, const std::vector<std::string>& arguments,
                       const std::vector<int>& inherited) {
  TROUPE_CHECK(children_.empty(), "spawn() is called once");
  const std::vector<Fd> lifted = lift_above_targets(inherited);
  try {
    const SpawnPlan plan(lifted);
    for (int rank = 0; rank < world_size; ++rank) {
      const int pid = plan.start(rank, arguments);
      const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));  // close-on-exec
      if (pidfd < 0) {
        const int error = errno;
        kill(pid, SIGKILL);
        waitpid(pid, nullptr, 0);
        throw_refused(rank, "pidfd_open", error);
      }
      children_.push_back({pid, Fd(pidfd)});
      poll_fds_.push_back(pidfd);
    }
  } catch (...) {
    stop_all(std::chrono::milliseconds(0));
    throw;
  }
}

int Supervisor::pid(int rank) const { return children_.at(static_cast<size_t>(rank)).pid; }

int Supervisor::running() const {
  return static_cast<int>(
      std::count_if(poll_fds_.begin(), poll_fds_.end(), [](int fd) { return fd >= 0; }));
}

const std::vector<int>& Supervisor::poll_fds() const { return poll_fds_; }

std::vector<RankExit> Supervisor::reap() { return reap(WNOHANG); }

std::vector<RankExit> Supervisor::reap(int options) {
  std::vector<RankExit> exits;
  for (size_t rank = 0; rank < children_.size(); ++rank) {
    if (poll_fds_[rank] < 0) continue;
    const auto exit =
        wait_for(static_cast<int>(rank), children_[rank].pid, poll_fds_[rank], options);
    if (!exit) continue;
    children_[rank].pidfd = Fd();
    poll_fds_[rank] = -1;
    exits.push_back(*exit);
  }
  return exits;
}

void Supervisor::signal_running(int signal) const {
  for (const int fd : poll_fds_) {
    if (fd >= 0) syscall(SYS_pidfd_send_signal, fd, signal, nullptr, 0);
  }
}

void Supervisor::terminate() const {
  signal_running(SIGTERM);
  signal_running(SIGCONT);  // one that is stopped would not hear of it
}

std::vector<RankExit> Supervisor::stop_all(std::chrono::milliseconds grace) {
  const auto deadline = Clock::now() + grace;
  std::vector<RankExit> exits = reap();
  while (running() > 0) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) break;
    std::vector<pollfd> fds;  // poll() passes over the -1 of ranks that have ended
    for (const int fd : poll_fds_) fds.push_back({.fd = fd, .events = POLLIN, .revents = 0});
    poll(fds.data(), fds.size(), static_cast<int>(left.count()));
    std::ranges::copy(reap(), std::back_inserter(exits));
  }
  signal_running(SIGKILL);
  std::ranges::copy(reap(0), std::back_inserter(exits));
  return exits;
}

void die_with_parent(int parent_pid, const std::string& who) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) throw RankError(errno_text("prctl(PR_SET_PDEATHSIG)"));
  // Had it died before that call, no signal would ever come.
  if (getppid() != parent_pid)
    throw_rank_error("{}: the launcher (process {}) is gone", who, parent_pid);
}

void enter_rank_process(int rank, int launcher_pid) {
  die_with_parent(launcher_pid, fmt::format("rank {}", rank));
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  prctl(PR_SET_NAME, fmt::format("troupe-rank{}", rank).c_str());
}

}  // namespace troupe::launcher
