#include "launcher/bench_ranks.h"

#include <poll.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "launcher/supervisor.h"

namespace troupe::launcher {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kReportBytes = size_t{1} << 20;  // of one rank, its length first
constexpr int kFailed = 1;

void pin_to_core(int core) {
  cpu_set_t allowed, one;
  CPU_ZERO(&allowed);
  CPU_ZERO(&one);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || core-- > 0) continue;
    CPU_SET(cpu, &one);
    ::sched_setaffinity(0, sizeof(one), &one);
    return;
  }
}

// The forked ranks of one benchmark.
class BenchRanks {
 public:
  BenchRanks(comm::Arena& arena, std::chrono::milliseconds timeout, const BenchBody& body)
      : arena_(arena), timeout_(timeout), body_(body) {
    const size_t bytes = world_size() * kReportBytes;
    reports_ = Mapping(create_shared_memory("troupe-bench", bytes).get(), bytes,
                       Mapping::Access::kReadWrite);
  }
  ~BenchRanks() {
    for (const pid_t pid : children_)
      if (pid > 0) ::kill(pid, SIGKILL);
    for (const pid_t pid : children_)
      if (pid > 0) ::waitpid(pid, nullptr, 0);
  }
  BenchRanks(const BenchRanks&) = delete;
  BenchRanks& operator=(const BenchRanks&) = delete;

  void start() {
    std::fflush(nullptr);  // else every child prints the buffers again
    const pid_t launcher = ::getpid();
    for (int rank = 0; rank < world_size(); ++rank) {
      const pid_t pid = ::fork();
      if (pid < 0) throw_user_error("rank {} cannot be started: {}", rank, errno_text("fork"));
      if (pid == 0) ::_exit(run_rank(rank, launcher));
      children_.push_back(pid);
    }
  }

  // In whatever order they end; the first that fails ends the others.
  void join() {
    std::string cause;
    for (int left = world_size(); left > 0; --left) {
      int status = 0;
      const pid_t pid = ::waitpid(-1, &status, 0);
      const auto child = std::find(children_.begin(), children_.end(), pid);
      TROUPE_CHECK(pid > 0 && child != children_.end(), "{}", errno_text("waitpid"));
      *child = 0;
      const int rank = static_cast<int>(child - children_.begin());
      if (status != 0 && cause.empty()) {
        cause = failure_text(rank, status);
        arena_.abort();
      }
    }
    if (!cause.empty()) throw RankError(cause);
  }

  std::string report(int rank) const {
    const std::byte* data = reports_.data() + rank * kReportBytes;
    size_t length = 0;
    std::memcpy(&length, data, sizeof(length));
    return {reinterpret_cast<const char*>(data + sizeof(length)), length};
  }

 private:
  int world_size() const { return arena_.shape().world_size; }

  int run_rank(int rank, pid_t launcher) const {
    try {
      enter_rank_process(rank, launcher);
      comm::Communicator communicator(arena_, rank, timeout_);  // which counts the cores
      if (communicator.spins()) pin_to_core(rank);
      std::string report;
      body_(communicator, report);
      TROUPE_CHECK(report.size() + sizeof(size_t) <= kReportBytes, "{}", report.size());
      std::byte* data = reports_.data() + rank * kReportBytes;
      const size_t length = report.size();
      std::memcpy(data, &length, sizeof(length));
      std::memcpy(data + sizeof(length), report.data(), length);
      return kExitOk;
    } catch (const std::exception& error) {
      arena_.publish_failure(rank, error.what());
      return kFailed;
    }
  }

  std::string failure_text(int rank, int status) const {
    if (WIFSIGNALED(status))
      return fmt::format("rank {} {}", rank, describe({.rank = rank, .signal = WTERMSIG(status)}));
    const int first = arena_.first_failed_rank();
    return arena_.failure(first >= 0 ? first : rank);
  }

  comm::Arena& arena_;
  std::chrono::milliseconds timeout_;
  const BenchBody& body_;
  Mapping reports_;
  std::vector<pid_t> children_;
};

}  // namespace

std::vector<std::string> run_bench_ranks(const comm::ArenaShape& shape,
                                         std::chrono::milliseconds timeout, const BenchBody& body) {
  comm::Arena arena = comm::Arena::create(shape);
  BenchRanks ranks(arena, timeout, body);
  ranks.start();
  ranks.join();
  std::vector<std::string> reports;
  for (int rank = 0; rank < shape.world_size; ++rank) reports.push_back(ranks.report(rank));
  return reports;
}

BenchTimes measure_collective(comm::ProcessGroup& group, double seconds,
                              const std::function<void()>& op) {
  const auto elapsed = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  for (int i = 0; i < 2; ++i) op();
  group.barrier();
  const auto start = Clock::now();
  for (int i = 0; i < 3; ++i) {
    group.barrier();
    op();
  }
  int calls = static_cast<int>(std::clamp(seconds / std::max(elapsed(start) / 3, 1e-7), 7.0, 5e3));
  group.broadcast(std::as_writable_bytes(std::span(&calls, 1)), 0);

  std::vector<double> times(calls);
  for (double& time : times) {
    group.barrier();
    const auto called = Clock::now();
    op();
    time = elapsed(called);
  }
  std::vector<double> of_all(times.size() * group.size());
  group.all_gather(std::as_bytes(std::span(times)), std::as_writable_bytes(std::span(of_all)));
  for (int rank = 0; rank < group.size(); ++rank)
    for (int i = 0; i < calls; ++i) times[i] = std::max(times[i], of_all[rank * calls + i]);
  std::sort(times.begin(), times.end());
  return {times[calls / 10] * 1e6, times[calls / 2] * 1e6, times[calls * 9 / 10] * 1e6};
}

}  // namespace troupe::launcher
