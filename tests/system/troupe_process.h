// tests/system/troupe_process.h: the `troupe` program as a user meets it: arguments, output, exit
// status, and the processes below it.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/memory.h"
#include "tests/model/files.h"

namespace troupe::system_tests {

// Ends a wait for what must happen soon; only a failing test waits that long.
inline constexpr std::chrono::seconds kDeadline{60};

struct Ended {
  int status = -1;  // -1 when a signal ended it
  int signal = 0;
  std::string out, err;

  std::vector<std::string> error_lines() const;
};

class TroupeProcess {
 public:
  using Environment = std::map<std::string, std::string>;

  // Starts `troupe arguments...` with `input` as its stdin. It and all its descendants have a
  // TMPDIR of their own.
  explicit TroupeProcess(const std::vector<std::string>& arguments,
                         const Environment& environment = {}, const std::string& input = "");
  ~TroupeProcess();  // kills what still runs
  TroupeProcess(const TroupeProcess&) = delete;
  TroupeProcess& operator=(const TroupeProcess&) = delete;

  int pid() const { return pid_; }
  // All processes of this launch, also those whose parent has died, from /proc.
  std::vector<int> processes() const;
  // The process that calls itself troupe-rankN, once there is one.
  int rank_pid(int rank) const;
  // Waits until condition() holds; throws, with what it has printed, when it ends before.
  void wait_until(const std::string& what, const std::function<bool()>& condition) const;
  const std::filesystem::path& temporary_directory() const { return tmp_.path(); }
  std::string out_so_far() const;
  std::string err_so_far() const;

  // Waits for the end. A process that outlives kDeadline is killed and fails the test.
  Ended wait();

 private:
  model::TemporaryDirectory tmp_;
  Fd out_, err_;  // memfds: they take any amount of output without a reader
  int pid_ = -1;
  Fd pidfd_;
  bool reaped_ = false;
};

// Runs `troupe arguments...` to its end.
Ended run_troupe(const std::vector<std::string>& arguments,
                 const TroupeProcess::Environment& environment = {}, const std::string& input = "");

// "comm", "maps", ... of a process; "" when it is gone.
std::string proc_file(int pid, const std::string& name);

// Waits until condition() holds. After kDeadline it throws, saying what did not happen.
void wait_until(const std::string& what, const std::function<bool()>& condition);

}  // namespace troupe::system_tests
