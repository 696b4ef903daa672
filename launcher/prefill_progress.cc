#include "launcher/prefill_progress.h"

namespace troupe::launcher {

PrefillProgress::PrefillProgress(const Session& session, int64_t prompt_tokens)
    : session_(session),
      read_before_(session.statistics().prefill_tokens),
      reused_before_(session.statistics().reused_tokens),
      decode_steps_before_(session.statistics().decode_steps),
      to_read_(prompt_tokens) {}

void PrefillProgress::update() {
  const actors::StepStatistics& s = session_.statistics();
  const int64_t done = s.prefill_tokens - read_before_ + s.reused_tokens - reused_before_;
  // Steps without a prompt: text is being written, and perhaps to the same terminal.
  if (done >= to_read_ || s.decode_steps > decode_steps_before_) return bar_.finish();
  bar_.show(static_cast<uint64_t>(done), static_cast<uint64_t>(to_read_));
}

}  // namespace troupe::launcher
