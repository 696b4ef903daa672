#include "launcher/session.h"

#include "launcher/rank_memory.h"

namespace troupe::launcher {

Session::Session(const Config& config, const model::ModelConfig& model, const Load& load,
                 uint8_t observe, SessionCallbacks callbacks)
    : limits_(serving_limits(config, model, load, observe)),
      callbacks_(std::move(callbacks)),
      mailbox_(actors::kLauncherRank,
               [this](int rank, std::span<const std::byte> bytes) { world_->send(rank, bytes); }),
      scheduler_(mailbox_, limits_, callbacks_.on_tokens,
                 [this](int id, int rank, int row, int position, int count) {
                   callbacks_.on_observed(id, world_->observation(rank), row, position, count);
                 }) {
  world_.emplace(
      describe_launch(config, limits_, observe), model, config.runtime.dump_dir,
      World::Callbacks{
          .on_step_done = [this](const msg::Envelope& envelope) { mailbox_.deliver(envelope); },
          .on_interrupt = callbacks_.on_interrupt});
}

int Session::submit(actors::Request request) {
  const int id = scheduler_.submit(std::move(request));
  world_->wake();
  return id;
}

void Session::cancel(int id) {
  scheduler_.cancel(id);
  world_->wake();
}

void Session::poll(std::chrono::milliseconds timeout) {
  scheduler_.advance();
  world_->poll(timeout);
  scheduler_.advance();
  const actors::StepStatistics& done = statistics();
  const actors::SchedulerState now = state();
  world_->publish({.prompt_tokens = static_cast<uint64_t>(done.prefill_tokens),
                   .new_tokens = static_cast<uint64_t>(done.decode_tokens),
                   .running = now.running,
                   .waiting = now.waiting,
                   .kv_blocks_in_use = now.blocks_in_use,
                   .kv_blocks = now.blocks});
}

void Session::run_until(const std::function<bool()>& done) {
  while (!done()) poll(std::chrono::seconds(1));
}

}  // namespace troupe::launcher
