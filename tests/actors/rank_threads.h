// tests/actors/rank_threads.h: a launch in one process: ranks as threads, where TSan sees races.
#pragma once

#include <vector>

#include "actors/rank_context.h"
#include "actors/scheduler.h"
#include "actors/step_graph.h"
#include "model/parallel_layout.h"

namespace troupe::actors {

struct LaunchOptions {
  model::ParallelSizes sizes;
  msg::DataType dtype = msg::DataType::Bfloat16;
  int num_drafts = 0;
  int batch_size = 4;
  int max_prefill_tokens = 16;  // so that prompts are cut
  int64_t moe_chunk_max_len = 1024;
  int threads_per_rank = 1;
  bool deterministic = true;
  bool moe_double_routing = false;
  bool moe_int8_payload = false;
  bool comm_thread = false;
  ExecutionOptions execution = {};
};

struct LaunchOutcome {
  std::vector<Completion> completions;
  // [rank] operator new in decode steps after the first two, without what the test itself does, and
  // without steps that record a graph.
  std::vector<int64_t> decode_allocations;
  struct Steps {
    int64_t decode = 0;    // all
    int64_t replayed = 0;  // those that record nothing, with exe_mode: graph
    uint64_t messages = 0, messages_of_replays = 0;  // between actors
    StepGraphs::Counts graphs;
  };
  std::vector<Steps> steps;  // [rank]
};

// Runs the requests on models/tiny-moe, each rank a thread with the actors of a real one. Throws
// what a rank threw.
LaunchOutcome launch(const LaunchOptions& options, std::vector<Request> requests);

}  // namespace troupe::actors
