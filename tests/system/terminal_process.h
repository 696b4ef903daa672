// tests/system/terminal_process.h: `troupe` at a terminal, as a person has it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/memory.h"

namespace troupe::system_tests {

// A process on a pseudo-terminal of its own: 80 columns, 24 lines, TERM=xterm.
class TerminalProcess {
 public:
  TerminalProcess(const std::vector<std::string>& arguments,
                  const std::map<std::string, std::string>& environment);
  ~TerminalProcess();  // kills what still runs
  TerminalProcess(const TerminalProcess&) = delete;
  TerminalProcess& operator=(const TerminalProcess&) = delete;

  void type(const std::string& keys);
  // Reads until the screen has been sent `text`; returns what came, `text` included. Fails the test
  // when it does not come (kDeadline).
  std::string read_until(const std::string& text);
  int pid() const { return pid_; }
  // Reads to the end; the exit status, -1 when a signal ended it.
  int wait();

 private:
  bool read_more();  // false at the end

  int pid_ = -1;
  Fd terminal_;
  std::string unread_;
};

}  // namespace troupe::system_tests
