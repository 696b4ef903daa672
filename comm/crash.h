// comm/crash.h: the stack of a rank that crashes, left in the arena for the launcher to read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/arena.h"

namespace troupe::comm {

struct CrashFrame {
  std::string module;    // path of the program or library, "" if unknown
  uint64_t address = 0;  // as the module's own symbols count (absolute where it is unknown)
};

struct CrashReport {
  int signal = 0;
  uint64_t fault_address = 0;      // of SIGSEGV and SIGBUS: what could not be reached
  std::vector<CrashFrame> frames;  // innermost first; each but the first a return address
};

// In the rank, before it has other threads: from here on SIGSEGV, SIGBUS, SIGILL, SIGFPE and
// SIGABRT leave the stack of the thread that met them and then end the process as ever. Does
// nothing in a build with a sanitizer, which has handlers of its own.
void install_crash_handler(const Arena& arena, int rank);

// What `rank` left, if it has crashed. From any process; nothing in shared memory is trusted.
std::optional<CrashReport> crash_report(const Arena& arena, int rank);

}  // namespace troupe::comm
