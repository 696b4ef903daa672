// actors/rank_actors.h: the process groups and the actors of one rank, wired together.
#pragma once

#include <optional>

#include "actors/attention_actor.h"
#include "actors/lm_head_actor.h"
#include "actors/moe_actor.h"
#include "actors/mtp_actor.h"
#include "actors/process_groups.h"
#include "actors/rank_context.h"
#include "actors/step_graph.h"

namespace troupe::actors {

class RankActors {
 public:
  // `context.groups` is set here. `send_remote` carries StepDone to the scheduler.
  RankActors(RankContext context, Mailbox::SendRemote send_remote);

  // Runs one step: a StepPlan envelope, valid until this returns.
  void run_step(const msg::Envelope& plan);

  uint64_t messages() const { return mailbox_.messages(); }  // between actors, so far
  StepGraphs::Counts graphs() const;                         // none if exe_mode is eager
  const ExpertLoad& expert_load() const { return moe_->expert_load(); }

 private:
  ProcessGroups groups_;
  RankContext context_;
  Mailbox mailbox_;
  std::optional<LmHeadActor> lm_head_;
  std::optional<MtpActor> mtp_;
  std::optional<MoeActor> moe_;
  std::optional<AttentionActor> attention_;
};

}  // namespace troupe::actors
