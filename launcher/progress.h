// launcher/progress.h: a progress bar, on a terminal only.
#pragma once

#include <cstdint>

namespace troupe::launcher {

class ProgressBar {
 public:
  explicit ProgressBar(const char* what);  // "loading weights"; silent unless stderr is a terminal
  ~ProgressBar() { finish(); }

  void show(uint64_t done_bytes, uint64_t total_bytes);
  void finish();  // clears the line

 private:
  const char* what_;
  bool terminal_;
  bool visible_ = false;
};

}  // namespace troupe::launcher
