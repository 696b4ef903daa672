#include "launcher/signal_reader.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <stdexcept>

#include "base/error.h"

namespace troupe::launcher {

SignalReader::SignalReader() {
  sigemptyset(&signals_);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&signals_, signal);
  ::sigprocmask(SIG_BLOCK, &signals_, &previous_);
  fd_ = Fd(::signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd_) throw std::runtime_error(errno_text("signalfd"));
}

SignalReader::~SignalReader() { ::sigprocmask(SIG_SETMASK, &previous_, nullptr); }

int SignalReader::take() const {
  signalfd_siginfo info;
  return ::read(fd_.get(), &info, sizeof(info)) == sizeof(info) ? static_cast<int>(info.ssi_signo)
                                                                : 0;
}

}  // namespace troupe::launcher
