// launcher/status_server.h: where others can look on at a running launch, also at one that hangs.
//
// A thread of the launcher listens on a socket in the abstract namespace of Linux, named
// "troupe-status-UID-PID-N": it has no name in any file system, so nothing is left behind however
// the launcher dies. Who connects is checked by its user id and gets one message: a description of
// the launch (JSON) and a descriptor of the arena that can only be read. From then on it reads what
// the ranks say of themselves without anybody's help.
#pragma once

#include <string>
#include <thread>
#include <vector>

#include "base/memory.h"
#include "comm/arena.h"

namespace troupe::launcher {

class StatusServer {
 public:
  // For as long as it lives; the descriptor is a copy. What goes wrong is logged and no more:
  // nobody's launch is to fail for want of onlookers.
  StatusServer(const comm::Arena& arena, std::string description);
  ~StatusServer();
  StatusServer(const StatusServer&) = delete;
  StatusServer& operator=(const StatusServer&) = delete;

 private:
  void serve() const;
  void answer(int connection) const;

  std::string description_;
  Fd arena_, listener_, stop_;
  std::thread thread_;
};

// A launch of this user that can be looked at.
struct LaunchAddress {
  int pid = 0;
  std::string name;  // of its socket, without the leading zero byte
};
std::vector<LaunchAddress> find_launches();

// What a launch says of itself. UserError where it is gone, or is not this user's.
struct LaunchDescription {
  std::string text;
  Fd arena;
};
LaunchDescription ask_launch(const LaunchAddress& address);

}  // namespace troupe::launcher
