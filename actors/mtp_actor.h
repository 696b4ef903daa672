// actors/mtp_actor.h: drafts of the next tokens by multi-token prediction (DeepSeek-V3
// report, 2.2).
//
// Slot i of the MTP layer takes eh_proj(concat(enorm(embed(token i+1)), hnorm(h_i))) with h_i the
// main model's row after its final norm, runs one decoder layer at index num_hidden_layers with KV
// rows of its own at position i, then shared_head.norm and shared_head.head: a guess of token i+2.
// Further drafts feed the layer's own row (after shared_head.norm) and the previous draft back in,
// at the following slots; those slots are overwritten once the true tokens are known.
//
// Owns      the draft loop of a step.
// Hears     StepPlan; Verified from the LM-head actor: the true tokens of this step's slots;
//           LayersDone from the attention actor; DraftTokens from the LM-head actor.
// Says      ForwardLayers to the attention actor, DraftRows and Drafted to the LM-head actor.
//
// Holds     the number of passes, and the bound on rows of each, are the plan's: equal on all
// ranks,
//           since every pass contains the MoE layer's collectives.
#pragma once

#include <vector>

#include "actors/actor.h"
#include "actors/embedding_lookup.h"
#include "actors/rank_context.h"
#include "layers/prepared_rows.h"

namespace troupe::actors {

class MtpActor final : public Actor {
 public:
  MtpActor(Mailbox& mailbox, const RankContext& context);

 private:
  void on(const msg::StepPlan& plan) override { plan_ = &plan; }
  void on(const msg::Verified& verified) override;
  void on(const msg::LayersDone& done) override;
  void on(const msg::DraftTokens& tokens) override;

  void add_row(int sequence, int position, int32_t next_token, const float* previous_hidden);
  void run_pass(int max_rows);

  RankContext context_;
  EmbeddingLookup embedding_;
  const msg::StepPlan* plan_ = nullptr;
  int pass_ = 0;      // 0: true tokens; k: the k-th draft fed back
  int num_rows_ = 0;  // of this pass

  struct Chain {   // a sequence that is being drafted
    int sequence;  // of the plan
    int last_row;  // its last row in pass 0
    int position;  // of its last slot
  };
  std::vector<Chain> chains_;
  layers::InputBuffer inputs_;
  std::vector<int32_t> next_tokens_;            // [rows]
  msg::Tensor hidden_, normed_, chain_normed_;  // [max_rows, hidden], chain: [max_sequences, ..]
  msg::Tensor fused_;                           // [max_rows, 2 hidden]: embedding, previous hidden
  msg::Tensor sequences_, positions_;           // [max_rows, 1]
  msg::Tensor drafts_;                          // [max_sequences, max_drafts]
};

}  // namespace troupe::actors
