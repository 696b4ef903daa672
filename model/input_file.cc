#include "model/input_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <system_error>

#include "base/error.h"

namespace troupe::model {
namespace {

// Where a relative path leads, for those who believe to be somewhere else.
std::string looked_in(const std::filesystem::path& path) {
  std::error_code gone;
  const std::filesystem::path here = std::filesystem::current_path(gone);
  return path.is_absolute() || gone ? "" : fmt::format(" (looked in {})", here.string());
}

// The input files that are mapped, for the signal handler. One that finds no room here is not
// guarded; no checkpoint has so many files.
struct Guarded {
  std::atomic<const std::byte*> begin{nullptr};  // null: free
  std::atomic<size_t> bytes{0};
};
std::array<Guarded, 4096> guarded_files;
std::mutex guarding;  // who changes the table or the handler
struct sigaction handler_before {};

bool is_guarded(const std::byte* address) {
  for (const Guarded& file : guarded_files) {
    const std::byte* begin = file.begin.load();
    if (begin != nullptr && address >= begin && address < begin + file.bytes.load()) return true;
  }
  return false;
}

// A page of a mapped file that the file no longer has becomes one of zeros. Every other SIGBUS is
// for the handler that was there before: the access is repeated, or the signal sent again, with
// that in force.
void on_bus_error(int signal, siginfo_t* info, void*) {
  const int error = errno;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  auto* first = reinterpret_cast<std::byte*>(address / page * page);
  const bool of_file = info->si_code == BUS_ADRERR && is_guarded(first);
  if (!of_file || ::mmap(first, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
                      MAP_FAILED) {
    ::sigaction(SIGBUS, &handler_before, nullptr);
    if (info->si_code <= 0) ::raise(signal);
  }
  errno = error;
}

void guard(const Mapping& mapping) {
  const std::lock_guard lock(guarding);
  struct sigaction now {};
  ::sigaction(SIGBUS, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) == 0 || now.sa_sigaction != on_bus_error) {
    handler_before = now;
    struct sigaction ours {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigaction(SIGBUS, &ours, nullptr);
  }
  for (Guarded& file : guarded_files) {
    if (file.begin.load() != nullptr) continue;
    file.bytes.store(mapping.size());
    file.begin.store(mapping.data());
    return;
  }
}

void forget(const Mapping& mapping) {
  const std::lock_guard lock(guarding);
  for (Guarded& file : guarded_files)
    if (file.begin.load() == mapping.data()) return file.begin.store(nullptr);
}

bool same_file(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
         a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

}  // namespace

InputFile::InputFile(const std::filesystem::path& path) : path_(path) {
  const auto reason = [] { return std::generic_category().message(errno); };
  if (path.empty()) throw_user_error("the name of a file is empty");
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    const int error = errno;
    throw_user_error("{}: cannot be opened: {}{}", path.string(), reason(),
                     error == ENOENT ? looked_in(path) : "");
  }
  if (::fstat(fd.get(), &status_) != 0)
    throw_user_error("{}: cannot be read: {}", path.string(), reason());
  if (!S_ISREG(status_.st_mode))
    throw_user_error("{}: is {}, not a file", path.string(),
                     S_ISDIR(status_.st_mode) ? "a directory" : "a device or pipe");
  if (status_.st_size == 0) throw_user_error("{}: is empty", path.string());
  try {
    mapping_ = Mapping(fd.get(), static_cast<size_t>(status_.st_size), Mapping::Access::kReadOnly);
  } catch (const std::runtime_error& error) {
    throw_user_error("{}: cannot be mapped: {}", path.string(), error.what());
  }
  guard(mapping_);
}

InputFile::~InputFile() { forget(mapping_); }

void InputFile::require_unchanged() const {
  struct stat now {};
  if (::stat(path_.c_str(), &now) != 0 || !same_file(now, status_))
    throw_user_error("{}: has changed while it was read; start again", path_.string());
}

}  // namespace troupe::model
