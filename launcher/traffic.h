// launcher/traffic.h: how many bytes each collective of a layout moves: a function of sizes alone.
//
// Unit: payload bytes that all ranks together send to other ranks, as Communicator::bytes_sent
// counts them, for each token. Between stages every token is one rank's (actors/row_exchange.h), so
// it is also what a rank sends for each token it owns, where all own equally many. What depends on
// the gate or on token ids is the mean over experts, or ids, that are all equally likely.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "actors/rank_context.h"
#include "model/model_config.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

struct Traffic {
  std::string_view stage = {}, collective = {};
  std::string_view axis = {};  // the group: "attn_tp", "ep", ...
  int group_size = 0;          // > 1
  int layers = 1;              // that do it; 1 for what happens once in a forward
  double bytes = 0;            // per token and layer
  bool is_mean = false;        // over the choices of gate or ids
  bool sampled = false;        // only for tokens that are sampled, not all of a prompt
};

// Of one forward pass through all layers, embedding and logits, without the MTP module. Collectives
// of one rank are left out. row_element_bytes: of activations between ranks, 2 (bfloat16) or 4.
// `moe`: how rows travel to experts and back. candidates: logits that are brought home per row, 0
// for all (actors/sharded_logits.h).
std::vector<Traffic> token_traffic(const model::ModelConfig& model,
                                   const model::ParallelLayout& layout, int row_element_bytes,
                                   int candidates, const actors::MoeOptions& moe);

// Row counts and the like, which do not grow with the tokens: bytes of all ranks together for one
// forward pass with logits.
int64_t forward_overhead_bytes(const model::ParallelLayout& layout);

// How many of `num_ranks` ranks a token visits, when its groups, and in them its experts, are any
// with equal chance. rank_of_expert [gate.num_experts]: where each is computed.
double mean_ranks_visited(const layers::TopkGateConfig& gate, std::span<const int> rank_of_expert,
                          int num_ranks);

}  // namespace troupe::launcher
