#include "actors/rank_actors.h"

#include "layers/team.h"

namespace troupe::actors {

RankActors::RankActors(RankContext context, Mailbox::SendRemote send_remote)
    : groups_(context.communicator, context.layout),
      context_(context),
      mailbox_(context.communicator.world_rank(), std::move(send_remote)) {
  context_.groups = &groups_;
  mailbox_.trace_to(context_.communicator.trace());
  // A plan goes to all of them in this order; attention, which starts the step, hears it last.
  lm_head_.emplace(mailbox_, context_);
  if (context_.weights.mtp) mtp_.emplace(mailbox_, context_);
  moe_.emplace(mailbox_, context_);
  attention_.emplace(mailbox_, context_);
  if (context_.execution.graph) mailbox_.use_graphs();
}

void RankActors::run_step(const msg::Envelope& plan) {
  const ExecutionOptions& execution = context_.execution;
  const bool one_region =
      execution.graph && execution.superkernel && plan.body_as_StepPlan()->decode();
  if (one_region)
    layers::parallel_region([&] { mailbox_.deliver(plan); });
  else
    mailbox_.deliver(plan);
}

StepGraphs::Counts RankActors::graphs() const {
  return mailbox_.graphs() != nullptr ? mailbox_.graphs()->counts() : StepGraphs::Counts{};
}

}  // namespace troupe::actors
