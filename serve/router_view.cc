#include "serve/router_view.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/pd_messages.h"

namespace troupe::serve {

void add_to_view(const JoinedInstance& instance, std::vector<RankView>& ranks,
                 actors::StepStatistics& steps, actors::SchedulerState& now) {
  const pd::StateT& s = instance.state;
  steps.prefill_steps += s.prefill_steps;
  steps.decode_steps += s.decode_steps;
  steps.prefill_tokens += s.prefill_tokens;
  steps.admitted_tokens += s.admitted_tokens;
  steps.reused_tokens += s.reused_tokens;
  steps.preemptions += s.preemptions;
  for (size_t i = 0; i < std::min(s.drafted_at.size(), steps.drafted_at.size()); ++i)
    steps.drafted_at[i] += s.drafted_at[i];
  for (size_t i = 0; i < std::min(s.accepted_at.size(), steps.accepted_at.size()); ++i)
    steps.accepted_at[i] += s.accepted_at[i];
  now.running += s.running;
  now.waiting += s.waiting;
  now.held += s.held;
  now.blocks_in_use += s.blocks_in_use;
  now.blocks += s.blocks;
  int rank = 0;
  for (const pd::RankNow& r : s.ranks) {
    RankView view{.rank = rank++, .instance = instance.name(), .activity = {}, .load = {}};
    view.activity.stage = static_cast<comm::Stage>(r.stage());
    view.activity.step = r.step();
    view.activity.layer = r.layer();
    view.activity.operation = static_cast<comm::Operation>(r.operation());
    view.activity.waiting_for = r.waiting_for();
    view.load.running = r.running();
    view.load.blocks_in_use = r.blocks_in_use();
    view.load.blocks = r.blocks();
    ranks.push_back(std::move(view));
  }
}

nlohmann::ordered_json pool_json(const JoinedInstance& instance) {
  const pd::StateT& s = instance.state;
  return {{"instance", instance.name()},
          {"role", role_name(instance.about.role)},
          {"pid", instance.about.pid},
          {"world_size", instance.about.world_size},
          {"attn_tp_size", instance.about.attn_tp_size},
          {"state", s.leaving ? "leaving" : "working"},
          {"open", instance.open},
          {"running", s.running},
          {"waiting", s.waiting},
          {"held", s.held},
          {"kv_blocks_in_use", s.blocks_in_use},
          {"kv_blocks", s.blocks},
          {"handoffs", s.handoffs},
          {"handoff_us", s.handoff_us},
          {"copied_bytes", s.copied_bytes},
          {"mapped_blocks", s.mapped_blocks},
          {"revoked", s.revoked}};
}

std::string pool_metrics_text(const nlohmann::ordered_json& pools) {
  struct Figure {
    const char *key, *name, *type, *help;
  };
  static constexpr Figure kFigures[] = {
      {"open", "pd_open_requests", "gauge", "The router's requests that are with an instance."},
      {"running", "pd_running_requests", "gauge", "Requests in an instance's batch."},
      {"waiting", "pd_waiting_requests", "gauge", "Requests that wait at an instance."},
      {"held", "pd_held_requests", "gauge", "Prompts whose KV blocks wait for, or have, a reader."},
      {"kv_blocks_in_use", "pd_kv_blocks_in_use", "gauge", "KV blocks in use."},
      {"kv_blocks", "pd_kv_blocks", "gauge", "KV blocks."},
      {"handoffs", "pd_handoffs_total", "counter", "Prompts taken over."},
      {"handoff_us", "pd_handoff_microseconds_total", "counter", "Time that took."},
      {"copied_bytes", "pd_copied_bytes_total", "counter", "Bytes of KV rows copied for it."},
      {"mapped_blocks", "pd_mapped_blocks_total", "counter", "KV blocks read where they lay."},
      {"revoked", "pd_revoked_total", "counter", "Hand-offs taken back after the lease."}};
  std::string text;
  for (const Figure& f : kFigures) {
    text += fmt::format("# HELP troupe:{0} {2}\n# TYPE troupe:{0} {1}\n", f.name, f.type, f.help);
    for (const auto& pool : pools)
      text += fmt::format("troupe:{}{{instance=\"{}\",role=\"{}\"}} {}\n", f.name,
                          pool["instance"].get<std::string>(), pool["role"].get<std::string>(),
                          pool[f.key].get<int64_t>());
  }
  return pools.empty() ? "" : text;
}

}  // namespace troupe::serve
