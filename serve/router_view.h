// serve/router_view.h: what a router shows of its instances: to the page, to Prometheus.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "actors/scheduler.h"
#include "serve/backend.h"
#include "serve/instance_list.h"

namespace troupe::serve {

// Appends its ranks, and adds what it has done and does to the sums.
void add_to_view(const JoinedInstance& instance, std::vector<RankView>& ranks,
                 actors::StepStatistics& steps, actors::SchedulerState& now);

// {"instance", "role", "pid", "world_size", "state", "open", "running", ..., "handoffs", ...}
nlohmann::ordered_json pool_json(const JoinedInstance& instance);

// The pools' figures in the text form of Prometheus.
std::string pool_metrics_text(const nlohmann::ordered_json& pools);

}  // namespace troupe::serve
