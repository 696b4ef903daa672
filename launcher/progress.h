// launcher/progress.h: how far something is that takes longer than a second.
#pragma once

#include <chrono>
#include <cstdint>

namespace troupe::launcher {

// On a terminal a bar that moves, elsewhere a line in the log every few seconds; nothing at all in
// the first second.
class ProgressBar {
 public:
  enum class Unit { kBytes, kTokens };
  explicit ProgressBar(const char* what, Unit unit = Unit::kBytes);  // "loading weights"
  ~ProgressBar() { finish(); }

  void show(uint64_t done, uint64_t total);
  void finish();  // clears the line

 private:
  const char* what_;
  Unit unit_;
  bool terminal_;
  bool visible_ = false;
  std::chrono::steady_clock::time_point next_;  // nothing is shown before
};

}  // namespace troupe::launcher
