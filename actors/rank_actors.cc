#include "actors/rank_actors.h"

namespace troupe::actors {

RankActors::RankActors(RankContext context, Mailbox::SendRemote send_remote)
    : groups_(context.communicator, context.layout),
      context_(context),
      mailbox_(context.communicator.world_rank(), std::move(send_remote)) {
  context_.groups = &groups_;
  // A plan goes to all of them in this order; attention, which starts the step, hears it last.
  lm_head_.emplace(mailbox_, context_);
  if (context_.weights.mtp) mtp_.emplace(mailbox_, context_);
  moe_.emplace(mailbox_, context_);
  attention_.emplace(mailbox_, context_);
}

}  // namespace troupe::actors
