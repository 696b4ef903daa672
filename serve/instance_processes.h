// serve/instance_processes.h: the instances that `troupe serve --pd-role both` starts beside its
// router: child processes that die with it, and are started again when they end by themselves.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/memory.h"

namespace troupe::serve {

class InstanceProcesses {
 public:
  struct Command {
    std::string name;                // "prefill"
    std::vector<std::string> words;  // after the program's name
  };

  // Starts them. The thread that does must outlive this.
  explicit InstanceProcesses(std::vector<Command> commands);
  ~InstanceProcesses();  // kills what still runs
  InstanceProcesses(const InstanceProcesses&) = delete;
  InstanceProcesses& operator=(const InstanceProcesses&) = delete;

  // Starts those that have ended again, a second later. UserError when one says that its input is
  // wrong, RankError when one keeps ending at once.
  void look();
  // Asks them to end, and waits for them.
  void stop();

 private:
  struct Child {
    Command command;
    int pid = -1;  // -1: it does not run
    std::chrono::steady_clock::time_point started{}, ended{};
    int early_ends = 0;  // in a row
  };
  void start(Child& child) const;
  static void on_end(Child& child, int status);

  std::vector<Child> children_;
};

}  // namespace troupe::serve
