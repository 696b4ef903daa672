// launcher/prefill_progress.h: how far a long prompt has been read, where that takes its time.
#pragma once

#include <cstdint>

#include "launcher/progress.h"
#include "launcher/session.h"

namespace troupe::launcher {

// Of all prompts between construction and the step after which none is left to read.
class PrefillProgress {
 public:
  PrefillProgress(const Session& session, int64_t prompt_tokens);
  void update();  // after poll()

 private:
  const Session& session_;
  int64_t read_before_, reused_before_, decode_steps_before_;
  int64_t to_read_;
  ProgressBar bar_{"reading prompts", ProgressBar::Unit::kTokens};
};

}  // namespace troupe::launcher
