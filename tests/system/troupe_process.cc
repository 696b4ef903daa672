#include "tests/system/troupe_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <thread>

namespace troupe::system_tests {
namespace {

Fd make_memfd(const char* name) {
  Fd fd(::memfd_create(name, MFD_CLOEXEC));
  if (!fd) throw std::runtime_error(errno_text("memfd_create"));
  return fd;
}

std::string content(int fd) { return model::read_file(fmt::format("/proc/self/fd/{}", fd)); }

std::vector<std::string> merged_environment(const TroupeProcess::Environment& changes) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string text = *variable;
    if (!changes.contains(text.substr(0, text.find('=')))) variables.push_back(text);
  }
  for (const auto& [name, value] : changes) variables.push_back(name + "=" + value);
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

// Signals as in a fresh shell.
int spawn(std::vector<std::string> arguments, std::vector<std::string> environment, int in, int out,
          int err) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
  posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  int pid = -1;
  const int error = posix_spawn(&pid, TROUPE_BINARY, &actions, &attributes,
                                pointers(arguments).data(), pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) throw std::runtime_error(fmt::format("{}: {}", TROUPE_BINARY, strerror(error)));
  return pid;
}

}  // namespace

std::vector<std::string> Ended::error_lines() const {
  std::vector<std::string> lines;
  std::istringstream text(err);
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

TroupeProcess::TroupeProcess(const std::vector<std::string>& arguments,
                             const Environment& environment, const std::string& input)
    : out_(make_memfd("test-stdout")), err_(make_memfd("test-stderr")) {
  std::vector<std::string> words{"troupe"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  Environment changes = environment;
  changes["TMPDIR"] = tmp_.path();
  const Fd in = make_memfd("test-stdin");
  if (::write(in.get(), input.data(), input.size()) != std::ssize(input) ||
      ::lseek(in.get(), 0, SEEK_SET) != 0)
    throw std::runtime_error(errno_text("write"));
  pid_ = spawn(words, merged_environment(changes), in.get(), out_.get(), err_.get());
  pidfd_ = Fd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
}

TroupeProcess::~TroupeProcess() {
  for (const int pid : processes()) ::kill(pid, SIGKILL);
  if (!reaped_) ::waitpid(pid_, nullptr, 0);
}

std::vector<int> TroupeProcess::processes() const {
  const std::string marker = fmt::format("TMPDIR={}", tmp_.path().string()) + '\0';
  std::vector<int> pids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const int pid = std::stoi(name);
    if (proc_file(pid, "environ").find(marker) != std::string::npos) pids.push_back(pid);
  }
  return pids;
}

int TroupeProcess::rank_pid(int rank) const {
  int found = -1;
  const std::string name = fmt::format("troupe-rank{}\n", rank);
  wait_until("the rank has started", [&] {
    const std::vector<int> pids = processes();
    const auto pid = std::ranges::find_if(
        pids, [&](int candidate) { return proc_file(candidate, "comm") == name; });
    if (pid != pids.end()) found = *pid;
    return found > 0;
  });
  return found;
}

void TroupeProcess::wait_until(const std::string& what,
                               const std::function<bool()>& condition) const {
  system_tests::wait_until(what, [&] {
    pollfd end{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&end, 1, 0) == 1)
      throw std::runtime_error(fmt::format("ended before {}: {}", what, err_so_far()));
    return condition();
  });
}

std::string TroupeProcess::out_so_far() const { return content(out_.get()); }
std::string TroupeProcess::err_so_far() const { return content(err_.get()); }

Ended TroupeProcess::wait() {
  pollfd entry{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  const auto limit = std::chrono::milliseconds(kDeadline);
  if (::poll(&entry, 1, static_cast<int>(limit.count())) != 1) {
    ADD_FAILURE() << "troupe still runs after " << kDeadline.count() << " s: " << err_so_far();
    ::kill(pid_, SIGKILL);
  }
  int status = 0;
  ::waitpid(pid_, &status, 0);
  reaped_ = true;
  Ended ended{.out = out_so_far(), .err = err_so_far()};
  if (WIFEXITED(status)) ended.status = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) ended.signal = WTERMSIG(status);
  return ended;
}

Ended run_troupe(const std::vector<std::string>& arguments,
                 const TroupeProcess::Environment& environment, const std::string& input) {
  return TroupeProcess(arguments, environment, input).wait();
}

std::string proc_file(int pid, const std::string& name) {
  return model::read_file(fmt::format("/proc/{}/{}", pid, name));
}

void wait_until(const std::string& what, const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kDeadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end)
      throw std::runtime_error("waited in vain until " + what);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace troupe::system_tests
