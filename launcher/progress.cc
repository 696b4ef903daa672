#include "launcher/progress.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace troupe::launcher {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kQuiet{1000}, kBetweenFrames{50}, kBetweenLines{5000};

}  // namespace

ProgressBar::ProgressBar(const char* what, Unit unit)
    : what_(what),
      unit_(unit),
      terminal_(::isatty(STDERR_FILENO) == 1),
      next_(steady_clock::now() + kQuiet) {}

void ProgressBar::show(uint64_t done, uint64_t total) {
  const auto now = steady_clock::now();
  if (total == 0 || now < next_) return;
  next_ = now + (terminal_ ? kBetweenFrames : kBetweenLines);
  constexpr size_t kWidth = 40;
  const double fraction = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const std::string amount =
      unit_ == Unit::kBytes
          ? fmt::format("{:3.0f} % of {:.1f} MB", fraction * 100, static_cast<double>(total) / 1e6)
          : fmt::format("{} of {} tokens", done, total);
  if (!terminal_) return spdlog::info("{}: {}", what_, amount);
  const auto filled = static_cast<size_t>(fraction * kWidth);
  fmt::print(stderr, "\r\033[K{} [{}{}] {}", what_, std::string(filled, '#'),
             std::string(kWidth - filled, '.'), amount);
  std::fflush(stderr);
  visible_ = true;
}

void ProgressBar::finish() {
  if (!visible_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  visible_ = false;
}

}  // namespace troupe::launcher
