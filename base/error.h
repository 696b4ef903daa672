// base/error.h: the kinds of failure and the exit status each one has (docs/design.md, section 6).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace troupe {

enum ExitStatus : int {
  kExitOk = 0,
  kExitInternal = 1,    // an invariant fell, or verify found a difference
  kExitUserError = 2,   // the user's input is wrong
  kExitRankFailed = 3,  // a rank failed or timed out
  kExitInterrupted = 130,
};

// The user can mend it: one line saying what is wrong, where (file, key, tensor), what to write
// instead. Thrown before ranks start wherever that is possible.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The world broke: a peer died, a deadline passed, two ranks disagree. Names the rank and the
// place.
class RankError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void throw_user_error(fmt::format_string<Args...> format, Args&&... args) {
  throw UserError(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void throw_rank_error(fmt::format_string<Args...> format, Args&&... args) {
  throw RankError(fmt::format(format, std::forward<Args>(args)...));
}

// The text of errno after a failed system call: "memfd_create: Too many open files".
std::string errno_text(const char* call);

[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               const std::string& values);

// An invariant of ours: when it does not hold we are wrong, not the user. Costs one compare; stays
// on in release builds. TROUPE_CHECK(a == b, "a {} b {}", a, b) prints the values.
#define TROUPE_CHECK(condition, ...)                                                         \
  do {                                                                                       \
    if (!(condition)) [[unlikely]]                                                           \
      ::troupe::check_failed(#condition, __FILE__, __LINE__, ::fmt::format("" __VA_ARGS__)); \
  } while (false)

}  // namespace troupe
