// launcher/progress.h: a progress bar for loading, on a terminal only.
#pragma once

#include <cstdint>

namespace troupe::launcher {

class LoadProgressBar {
 public:
  LoadProgressBar();  // silent unless stderr is a terminal
  ~LoadProgressBar() { finish(); }

  void show(uint64_t done_bytes, uint64_t total_bytes);
  void finish();  // clears the line

 private:
  bool terminal_;
  bool visible_ = false;
};

}  // namespace troupe::launcher
