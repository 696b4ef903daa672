// launcher/supervisor.h: the rank processes of a launch: born, watched, and gone.
//
// Ranks are direct children of the launcher, spawned from its main thread (PR_SET_PDEATHSIG, which
// each rank sets first thing, is tied to the spawning thread). They ignore SIGINT: only the
// launcher handles signals. Whatever way the object is left, no rank outlives it.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "base/memory.h"

namespace troupe::launcher {

struct RankExit {
  int rank = -1;
  int pid = 0;
  int exit_status = 0;  // when it exited by itself
  int signal = 0;       // when a signal killed it, else 0
};

// "exited with status 1", "was killed by SIGKILL (signal 9)"
std::string describe(const RankExit& exit);

class Supervisor {
 public:
  // The descriptors every rank inherits, in this order from number kFirstFd on.
  static constexpr int kFirstFd = 3;

  Supervisor() = default;
  ~Supervisor();  // kills and reaps what still runs
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Starts `world_size` processes /proc/self/exe with arguments "rank --rank N" + `arguments`,
  // stdin from /dev/null, stdout to stderr, `inherited` as descriptors 3, 4, ... and no other.
  // Throws UserError naming the limit (RLIMIT_NPROC, memory, ...) when the system refuses; ranks
  // started before are killed first.
  void spawn(int world_size, const std::vector<std::string>& arguments,
             const std::vector<int>& inherited);

  int pid(int rank) const;
  int running() const;  // ranks that have not been reaped
  // Descriptors (pidfd) that become readable when their rank ends; -1 for a rank that has ended.
  const std::vector<int>& poll_fds() const;
  // Reaps the ranks that have ended, in the order found. Never blocks.
  std::vector<RankExit> reap();
  // Asks the ranks to end, with SIGTERM: they own nothing that outlives them.
  void terminate() const;
  // Waits up to `grace` for the ranks to end by themselves, then SIGKILLs and reaps the rest.
  // Returns the exits it saw.
  std::vector<RankExit> stop_all(std::chrono::milliseconds grace);

 private:
  std::vector<RankExit> reap(int waitid_options);
  void signal_running(int signal) const;

  struct Child {
    int pid = 0;
    Fd pidfd;
  };
  std::vector<Child> children_;
  std::vector<int> poll_fds_;
};

// What a rank does first: dies with the launcher (PR_SET_PDEATHSIG), checks that `launcher_pid` is
// still its parent (it may have died before), ignores SIGINT and SIGPIPE, names itself
// ("troupe-rank3"). Throws RankError when the launcher is gone.
void enter_rank_process(int rank, int launcher_pid);
// The first two of these, for any child; RankError names it as `who`.
void die_with_parent(int parent_pid, const std::string& who);

}  // namespace troupe::launcher
