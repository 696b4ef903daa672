#include "comm/fault.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <ctime>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "comm/arena_layout.h"

namespace troupe::comm {
namespace {

using Kind = Fault::Kind;

constexpr std::array<std::pair<std::string_view, Kind>, 7> kKinds{{{"kill", Kind::kKill},
                                                                   {"stop", Kind::kStop},
                                                                   {"segv", Kind::kSegv},
                                                                   {"slow", Kind::kSlow},
                                                                   {"delay", Kind::kDelay},
                                                                   {"drop", Kind::kDrop},
                                                                   {"corrupt", Kind::kCorrupt}}};
constexpr int64_t kMaxMs = 3'600'000;
constexpr double kMaxFactor = 1000;
// Sleep is owed until it is worth a system call, whose timer is late by 50 us anyway.
constexpr double kLeastSleepNs = 1e6;

template <class Enum>
constexpr int last_of();
template <>
constexpr int last_of<Stage>() {
  return static_cast<int>(Stage::kStopping);
}
template <>
constexpr int last_of<Operation>() {
  return static_cast<int>(Operation::kCombine);
}

// The first word: "loading weights" is written "loading".
std::string_view short_name(Stage stage) {
  const std::string_view name = stage_name(stage);
  return name.substr(0, name.find(' '));
}
std::string_view short_name(Operation operation) { return operation_name(operation); }

template <class Enum>
std::optional<Enum> named(std::string_view name, int first) {
  for (int i = first; i <= last_of<Enum>(); ++i)
    if (short_name(static_cast<Enum>(i)) == name) return static_cast<Enum>(i);
  return std::nullopt;
}

// Reads one "--inject" text; every error names it.
class FaultParser {
 public:
  FaultParser(const std::string& text, int world_size) : text_(text), world_size_(world_size) {}

  Fault parse() {
    const size_t colon = text_.find(':');
    const std::string_view kind = std::string_view(text_).substr(0, colon);
    const auto found =
        std::ranges::find(kKinds, kind, [](const auto& entry) { return entry.first; });
    if (colon == std::string::npos || found == kKinds.end())
      refuse("expected KIND:rank=R,..., KIND one of kill, stop, segv, slow, delay, drop, corrupt");
    fault_.kind = found->second;
    std::string_view rest = std::string_view(text_).substr(colon + 1);
    for (bool more = true; more;) {
      const size_t comma = rest.find(',');
      read_item(rest.substr(0, comma));
      more = comma != std::string_view::npos;
      if (more) rest.remove_prefix(comma + 1);
    }
    check();
    return fault_;
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw_user_error("--inject {}: {}", text_, fmt::format(format, std::forward<Args>(args)...));
  }

  void read_item(std::string_view item) {
    const size_t equals = item.find('=');
    const std::string_view key = item.substr(0, equals);
    if (equals == std::string_view::npos) refuse("'{}' is no key=value", item);
    const std::string_view value = item.substr(equals + 1);
    if (std::ranges::find(seen_, key) != seen_.end()) refuse("{} is given twice", key);
    seen_.push_back(key);
    if (key == "rank") {
      fault_.rank = number<int>(key, value, 0, world_size_ - 1);
    } else if (key == "stage") {
      read_stage(value);
    } else if (key == "step") {
      fault_.step = number<uint64_t>(key, value, 1, UINT64_MAX);
    } else if (key == "layer") {
      fault_.layer = number<int32_t>(key, value, 0, INT32_MAX);
    } else if (key == "ms" && fault_.kind == Kind::kDelay) {
      fault_.ms = number<int64_t>(key, value, 1, kMaxMs);
    } else if (key == "factor" && fault_.kind == Kind::kSlow) {
      fault_.factor = number<double>(key, value, 1, kMaxFactor);
    } else {
      refuse(
          "unknown key '{}'; the keys are rank, stage, step, layer, ms (of delay), factor (of "
          "slow)",
          key);
    }
  }

  void read_stage(std::string_view value) {
    fault_.stage = named<Stage>(value, 0);
    fault_.operation = named<Operation>(value, 1);
    if (fault_.stage || fault_.operation) return;
    std::string names;
    for (int i = 0; i <= last_of<Stage>(); ++i)
      names += fmt::format("{}, ", short_name(static_cast<Stage>(i)));
    for (int i = 1; i <= last_of<Operation>(); ++i)
      names += fmt::format("{}{}", i == 1 ? "" : ", ", short_name(static_cast<Operation>(i)));
    refuse("unknown stage '{}'; one of {}", value, names);
  }

  // Written so that a NaN is refused too.
  template <class Number>
  Number number(std::string_view key, std::string_view value, Number least, Number most) const {
    Number result{};
    const char* end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, result);
    if (error != std::errc{} || stop != end || !(result >= least && result <= most))
      refuse("{} is a number from {} to {}, not '{}'", key, least, most, value);
    return result;
  }

  void check() const {
    if (std::ranges::find(seen_, "rank") == seen_.end()) refuse("rank is missing");
    const bool outside_steps = fault_.stage == Stage::kStarting || fault_.stage == Stage::kLoading;
    if (outside_steps && (fault_.step > 0 || fault_.layer))
      refuse("there are no steps and layers in that stage");
    if (fault_.kind == Kind::kDrop && outside_steps)
      refuse("there are no collectives in that stage");
  }

  const std::string& text_;
  int world_size_;
  Fault fault_;
  std::vector<std::string_view> seen_;
};

bool is_due(const Fault& fault, const ActivitySnapshot& here) {
  if (fault.kind == Kind::kDrop && here.operation == Operation::kNone) return false;
  return (!fault.stage || *fault.stage == here.stage) &&
         (!fault.operation || *fault.operation == here.operation) && here.step >= fault.step &&
         (!fault.layer || *fault.layer == here.layer);
}

void sleep_ns(int64_t ns) {
  timespec left{.tv_sec = ns / 1'000'000'000, .tv_nsec = ns % 1'000'000'000};
  while (::nanosleep(&left, &left) != 0 && errno == EINTR) {
  }
}

int64_t thread_cpu_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Volatile, or the compiler leaves out both the address and the write.
[[gnu::noinline]] void write_to_address_zero() {
  volatile int* volatile nowhere = nullptr;
  *nowhere = 1;
}

}  // namespace

Fault parse_fault(const std::string& text, int world_size) {
  return FaultParser(text, world_size).parse();
}

size_t FaultInjector::arrive(const ActivitySnapshot& here) {
  if (slow_factor_ > 1) slow_down();
  for (size_t struck = 0;; ++struck) {
    const auto due = std::ranges::find_if(faults_, [&](const Fault& f) { return is_due(f, here); });
    if (due == faults_.end()) return struck;
    const Fault fault = *due;
    faults_.erase(due);
    strike(fault);
  }
}

void FaultInjector::strike(const Fault& fault) {
  switch (fault.kind) {
    case Kind::kKill:
      ::kill(::getpid(), SIGKILL);
      return;
    case Kind::kStop:
      ::kill(::getpid(), SIGSTOP);
      return;
    case Kind::kSegv:
      return write_to_address_zero();
    case Kind::kSlow:
      slow_factor_ = fault.factor;
      computed_ns_ = thread_cpu_ns();
      return;
    case Kind::kDelay:
      return sleep_ns(fault.ms * 1'000'000);
    case Kind::kDrop:
      return due_.push_back(Misdeed::kSkipCollective);
    case Kind::kCorrupt:
      return due_.push_back(fault.operation ? Misdeed::kSpoilHeader : Misdeed::kSpoilMessage);
  }
}

// Sleeps as if this rank's core were slower; other ranks keep the machine to themselves.
void FaultInjector::slow_down() {
  const int64_t computed = thread_cpu_ns();
  owed_ns_ += (slow_factor_ - 1) * static_cast<double>(computed - computed_ns_);
  computed_ns_ = computed;
  if (owed_ns_ < kLeastSleepNs) return;
  const int64_t start = now_ns();
  sleep_ns(static_cast<int64_t>(owed_ns_));
  owed_ns_ -= static_cast<double>(now_ns() - start);
}

bool FaultInjector::take(Misdeed misdeed) {
  const auto due = std::ranges::find(due_, misdeed);
  if (due == due_.end()) return false;
  due_.erase(due);
  return true;
}

}  // namespace troupe::comm
