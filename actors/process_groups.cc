#include "actors/process_groups.h"

namespace troupe::actors {

namespace {

// Ids are the same on all members; those of two groups with an equal member differ by the axis.
enum GroupId : uint32_t {
  kWorld,
  kAttnTp,
  kOProjTp,
  kDenseTp,
  kSharedTp,
  kMoeTp,
  kEp,
  kEmbedTp,
  kLmHeadTp
};

comm::ProcessGroup tp_group(comm::Communicator& communicator, GroupId id, int size) {
  return {communicator, id, model::ParallelLayout::tp_group(communicator.world_rank(), size)};
}

}  // namespace

ProcessGroups::ProcessGroups(comm::Communicator& c, const model::ParallelLayout& layout)
    : world(tp_group(c, kWorld, layout.sizes().world_size)),
      attn_tp(tp_group(c, kAttnTp, layout.sizes().attn_tp_size)),
      o_proj_tp(tp_group(c, kOProjTp, layout.o_proj_tp_size())),
      dense_tp(tp_group(c, kDenseTp, layout.sizes().dense_tp_size)),
      shared_tp(tp_group(c, kSharedTp, layout.sizes().shared_tp_size)),
      moe_tp(tp_group(c, kMoeTp, layout.sizes().moe_tp_size)),
      expert_parallel(c, kEp, layout.ep_group(c.world_rank())),
      embed_tp(tp_group(c, kEmbedTp, layout.sizes().embed_tp_size)),
      lmhead_tp(tp_group(c, kLmHeadTp, layout.sizes().lmhead_tp_size)) {}

}  // namespace troupe::actors
