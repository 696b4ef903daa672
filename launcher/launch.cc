#include "launcher/launch.h"

namespace troupe::launcher {

LaunchResult run_launch(const Config& config, const model::ModelConfig& model,
                        std::vector<actors::Request> requests, uint8_t observe,
                        SessionCallbacks callbacks) {
  for (size_t i = 0; i < requests.size(); ++i)
    actors::require_fitting(requests[i], static_cast<int>(i), model.max_position_embeddings);
  Session session(config, model, load_of(requests, model), observe, std::move(callbacks));
  const size_t num_requests = requests.size();
  for (actors::Request& request : requests) session.submit(std::move(request));
  session.run_until([&] { return session.idle(); });

  LaunchResult result{.completions = {},
                      .statistics = session.statistics(),
                      .ranks = session.shut_down(),
                      .load_s = session.load_s()};
  for (size_t i = 0; i < num_requests; ++i)
    result.completions.push_back(session.completion(static_cast<int>(i)));
  return result;
}

}  // namespace troupe::launcher
