// launcher/signal_reader.h: signals that end a program, as data on a descriptor.
#pragma once

#include <csignal>

#include "base/memory.h"

namespace troupe::launcher {

// While it lives SIGINT, SIGTERM and SIGHUP of this thread arrive here and do nothing else.
class SignalReader {
 public:
  SignalReader();
  ~SignalReader();
  SignalReader(const SignalReader&) = delete;
  SignalReader& operator=(const SignalReader&) = delete;

  int fd() const { return fd_.get(); }
  int take() const;  // the number of a signal that has arrived, else 0

 private:
  sigset_t signals_, previous_;
  Fd fd_;
};

}  // namespace troupe::launcher
