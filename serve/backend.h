// serve/backend.h: what answers requests, as the endpoints see it: the ranks of one launch
// (serve/engine.h), or a router before several (serve/router.h).
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "actors/request.h"
#include "actors/scheduler.h"
#include "comm/arena.h"
#include "serve/generation.h"
#include "serve/metrics.h"

namespace troupe::serve {

enum class EngineState { kLoading, kReady, kDraining, kFailed };

// Why a request is not taken.
enum class Refusal { kNone, kLoading, kDraining, kFailed, kQueueFull };

struct RankView {
  int rank = 0;
  std::string instance = {};  // "prefill 0"; empty where there is but one launch
  comm::ActivitySnapshot activity;
  actors::SchedulerState load;  // of its data-parallel rank
};

// All may be called from any thread.
class Backend {
 public:
  virtual ~Backend() = default;

  // The answers of `requests`, which belong together; null with another refusal than kNone. A
  // generation is let go of when all its answers have ended; cancel() ends those that have not.
  virtual std::shared_ptr<Generation> submit(std::vector<actors::Request> requests,
                                             std::function<void()> wake, Refusal& refusal) = 0;
  virtual void cancel(const std::shared_ptr<Generation>& generation) = 0;

  virtual EngineState state() const = 0;
  // Tokens of prompt and answer that a request may have; once it has been ready.
  virtual int64_t most_positions() const = 0;
  virtual int world_size() const = 0;
  virtual std::vector<RankView> ranks() const = 0;  // at most a tenth of a second old
  virtual const Metrics& metrics() const = 0;
  // Of a router: its instances and what went between them, for the page and for Prometheus.
  virtual nlohmann::ordered_json pools() const { return nlohmann::ordered_json::array(); }
  virtual std::string pool_metrics() const { return ""; }
};

}  // namespace troupe::serve
