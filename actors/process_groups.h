// actors/process_groups.h: the process groups of one rank, one for each axis of parallel_config.
//
// Tensor-parallel groups are runs of neighbouring ranks (model/parallel_layout.h); a size of 1 is a
// group of the rank alone, in which collectives cost nothing.
#pragma once

#include "comm/process_group.h"
#include "model/parallel_layout.h"

namespace troupe::actors {

struct ProcessGroups {
  ProcessGroups(comm::Communicator& communicator, const model::ParallelLayout& layout);

  comm::ProcessGroup world;
  comm::ProcessGroup attn_tp;
  comm::ProcessGroup o_proj_tp;
  comm::ProcessGroup dense_tp;
  comm::ProcessGroup shared_tp;
  comm::ProcessGroup moe_tp;           // the ranks that hold parts of the same experts
  comm::ProcessGroup expert_parallel;  // one rank of each moe_tp group
  comm::ProcessGroup embed_tp;
  comm::ProcessGroup lmhead_tp;
};

}  // namespace troupe::actors
