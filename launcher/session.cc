#include "launcher/session.h"

#include <fstream>

#include "actors/rank.h"
#include "base/error.h"
#include "base/log.h"
#include "launcher/config_text.h"
#include "launcher/rank_memory.h"
#include "model/safetensors.h"

namespace troupe::launcher {
namespace {

// Beside the logs: what this launch was.
void write_config(const Config& config) {
  if (log_options().directory.empty()) return;
  const std::filesystem::path path = log_options().directory / "config.yaml";
  std::ofstream file(path);
  file << config_text(config);
  file.close();
  if (!file) throw_user_error("--log-dir: {} cannot be written", path.string());
}

msg::LaunchT launch_of(const Config& config, const model::ModelConfig& model,
                       const actors::SchedulerLimits& limits, const Load& load, uint8_t observe) {
  msg::LaunchT launch = describe_launch(config, limits, observe);
  if (load.adopts)
    launch.kv_foreign_blocks = actors::most_foreign_blocks(actors::kv_cache_shape(launch, model));
  return launch;
}

const char* reason_text(actors::FinishReason reason) {
  switch (reason) {
    case actors::FinishReason::kStop:
      return "stop";
    case actors::FinishReason::kLength:
      return "length";
    case actors::FinishReason::kCancelled:
      return "cancelled";
    case actors::FinishReason::kNone:
      break;
  }
  return "";
}

void log_request(int id, const std::string& text) {
  log(LogLevel::kDebug, "scheduler", text, {.actor = "scheduler", .request = id});
}

}  // namespace

Session::Session(const Config& config, const model::ModelConfig& model, const Load& load,
                 uint8_t observe, SessionCallbacks callbacks)
    : limits_(serving_limits(config, model, load, observe)),
      callbacks_(std::move(callbacks)),
      mailbox_(actors::kLauncherRank,
               [this](int rank, std::span<const std::byte> bytes) { world_->send(rank, bytes); }),
      scheduler_(
          mailbox_, limits_,
          [this](int id, std::span<const int32_t> tokens, actors::FinishReason reason) {
            if (reason != actors::FinishReason::kNone)
              log_request(id, fmt::format("ended: {}", reason_text(reason)));
            callbacks_.on_tokens(id, tokens, reason);
          },
          [this](int id, int rank, int row, int position, int count) {
            callbacks_.on_observed(id, world_->observation(rank), row, position, count);
          }) {
  write_config(config);
  world_.emplace(
      launch_of(config, model, limits_, load, observe), model,
      WorldPaths{.dump = config.runtime.dump_dir, .trace = config.trace_dir},
      World::Callbacks{
          .on_step_done = [this](const msg::Envelope& envelope) { mailbox_.deliver(envelope); },
          .on_interrupt = callbacks_.on_interrupt,
          .on_terminate = callbacks_.on_terminate});
  mailbox_.trace_to(world_->trace());
  // The ranks have packed the weights: the checkpoint's pages in the kernel's cache would be a
  // second copy of them.
  if (config.model.with_ckpt) model::drop_from_page_cache(config.model.model_path);
}

int Session::submit(actors::Request request) {
  const size_t prompt_tokens = request.prompt.size();
  const int id = scheduler_.submit(std::move(request));
  log_request(id, fmt::format("{} tokens of prompt", prompt_tokens));
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

void Session::start_trace(const std::filesystem::path& directory) {
  TROUPE_CHECK(idle() && !tracing());
  world_->start_trace(directory);
  mailbox_.trace_to(world_->trace());
  traced_after_ = scheduler_.step();
}

std::filesystem::path Session::finish_trace() {
  TROUPE_CHECK(idle() && tracing());
  if (scheduler_.step() == traced_after_) {
    drop_trace();
    throw_user_error("nothing was done while the trace was on: no file is written");
  }
  mailbox_.trace_to(nullptr);
  return world_->finish_trace();
}

void Session::drop_trace() {
  TROUPE_CHECK(idle() && tracing());
  mailbox_.trace_to(nullptr);
  world_->drop_trace();
}

void Session::run_until(const std::function<bool()>& done) {
  while (!done()) poll(std::chrono::seconds(1));
}

}  // namespace troupe::launcher
