#include "tests/system/terminal_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "base/error.h"
#include "tests/system/troupe_process.h"

namespace troupe::system_tests {

TerminalProcess::TerminalProcess(const std::vector<std::string>& arguments,
                                 const std::map<std::string, std::string>& environment) {
  std::vector<std::string> words{"troupe"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  winsize size{.ws_row = 24, .ws_col = 80, .ws_xpixel = 0, .ws_ypixel = 0};
  int terminal = -1;
  pid_ = ::forkpty(&terminal, nullptr, nullptr, &size);
  if (pid_ < 0) throw std::runtime_error(errno_text("forkpty"));
  if (pid_ == 0) {
    ::setenv("TERM", "xterm", 1);
    for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
    ::execv(TROUPE_BINARY, argv.data());
    ::_exit(127);
  }
  terminal_ = Fd(terminal);
}

TerminalProcess::~TerminalProcess() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void TerminalProcess::type(const std::string& keys) {
  if (::write(terminal_.get(), keys.data(), keys.size()) != std::ssize(keys))
    throw std::runtime_error(errno_text("write"));
}

bool TerminalProcess::read_more() {
  pollfd entry{.fd = terminal_.get(), .events = POLLIN, .revents = 0};
  const auto limit = std::chrono::milliseconds(kDeadline);
  if (::poll(&entry, 1, static_cast<int>(limit.count())) != 1) return false;
  char buffer[4096];
  const ssize_t size = ::read(terminal_.get(), buffer, sizeof(buffer));
  if (size <= 0) return false;  // EIO: nobody has the terminal open any more
  unread_.append(buffer, static_cast<size_t>(size));
  return true;
}

std::string TerminalProcess::read_until(const std::string& text) {
  size_t found;
  while ((found = unread_.find(text)) == std::string::npos) {
    if (read_more()) continue;
    ADD_FAILURE() << "\"" << text << "\" does not come; instead: " << unread_;
    return std::exchange(unread_, {});
  }
  const std::string before = unread_.substr(0, found + text.size());
  unread_.erase(0, before.size());
  return before;
}

int TerminalProcess::wait() {
  while (read_more()) {
  }
  int status = 0;
  ::waitpid(std::exchange(pid_, -1), &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace troupe::system_tests
