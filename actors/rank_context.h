// actors/rank_context.h: what the actors of one rank are built from. Read-only to all of them but
// for the workspace, from which each takes its own buffers.
#pragma once

#include <cstdint>

#include "actors/observation.h"
#include "actors/process_groups.h"
#include "actors/row_exchange.h"
#include "actors/workspace.h"
#include "comm/process_group.h"
#include "layers/kv_cache.h"
#include "model/model_config.h"
#include "model/parallel_layout.h"
#include "model/weights.h"

namespace troupe::actors {

// How rows travel to experts and back.
struct MoeOptions {
  int64_t chunk_max_len = 0;    // tokens of one rank in a dispatch, at most
  bool deterministic = true;    // a row per expert comes back; else one per rank, added there
  bool double_routing = false;  // comm/double_routing.h instead of comm/fused_exchange.h
  bool int8_payload = false;    // on the way out
  bool force_eplb = false;      // spread rows evenly, whatever the gate says
};

// How a rank's operations follow each other; the results are the same.
struct ExecutionOptions {
  bool graph = false;         // decode steps are recorded and replayed (actors/step_graph.h)
  bool superkernel = false;   // with graph: a decode step is one parallel region of the team
  bool multi_streams = true;  // a shared expert is computed while rows travel
};

struct RankContext {
  const model::ModelConfig& config;
  const model::ParallelLayout& layout;
  const model::ModelWeights& weights;
  comm::Communicator& communicator;
  Workspace& workspace;
  layers::KvCache kv_cache;  // layers [0, num_hidden_layers], the last one the MTP layer's
  Observation observation;
  layers::Rounding rounding = layers::Rounding::kBf16;  // of activations: the dtype
  int max_rows = 0;                                     // tokens of one step
  int max_sequences = 0;
  int max_drafts = 0;
  MoeOptions moe;
  ExecutionOptions execution;

  ProcessGroups* groups = nullptr;  // set by RankActors

  int mtp_layer() const { return config.num_hidden_layers; }
  bool bf16() const { return rounding == layers::Rounding::kBf16; }
  // Of an operation on rows, in the launch's trace if there is one; of none, on no rows.
  comm::TraceSpan span(comm::TraceOp op, int64_t rows) const {
    return {rows > 0 ? communicator.trace() : nullptr, op, rows};
  }
  RowFormat row_format() const { return bf16() ? RowFormat::kBf16 : RowFormat::kF32; }
};

}  // namespace troupe::actors
