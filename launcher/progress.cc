#include "launcher/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace troupe::launcher {

ProgressBar::ProgressBar(const char* what) : what_(what), terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressBar::show(uint64_t done_bytes, uint64_t total_bytes) {
  if (!terminal_ || total_bytes == 0) return;
  constexpr size_t kWidth = 40;
  const double fraction =
      std::min(1.0, static_cast<double>(done_bytes) / static_cast<double>(total_bytes));
  const auto filled = static_cast<size_t>(fraction * kWidth);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r%s [%s] %3.0f %% of %.1f MB", what_, bar.c_str(), fraction * 100,
               static_cast<double>(total_bytes) / 1e6);
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
