#include "launcher/launch.h"

#include "launcher/prefill_progress.h"
#include "launcher/rank_memory.h"

namespace troupe::launcher {

LaunchResult run_launch(const Config& config, const model::ModelConfig& model,
                        std::vector<actors::Request> requests, uint8_t observe,
                        SessionCallbacks callbacks) {
  const Load load = load_of(requests, model);
  const auto limits = serving_limits(config, model, load, observe);
  for (size_t i = 0; i < requests.size(); ++i)
    actors::require_fitting(requests[i], static_cast<int>(i), limits);
  Session session(config, model, load, observe, std::move(callbacks));
  const size_t num_requests = requests.size();
  int64_t prompt_tokens = 0;
  for (const actors::Request& request : requests) prompt_tokens += std::ssize(request.prompt);
  PrefillProgress progress(session, prompt_tokens);
  for (actors::Request& request : requests) session.submit(std::move(request));
  session.run_until([&] {
    progress.update();
    return session.idle();
  });

  LaunchResult result{.completions = {},
                      .statistics = session.statistics(),
                      .ranks = session.shut_down(),
                      .expert_load = {},
                      .drafts = session.drafts(),
                      .kv_blocks = limits.blocks_per_dp_rank,
                      .load_s = session.load_s()};
  result.expert_load = expert_load(result.ranks, model, config.parallel);
  for (size_t i = 0; i < num_requests; ++i)
    result.completions.push_back(session.completion(static_cast<int>(i)));
  return result;
}

}  // namespace troupe::launcher
