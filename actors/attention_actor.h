// actors/attention_actor.h: the decoder layers of one rank: embedding, MLA, and the layer loop.
//
// Owns      the rows (residual stream) of the step and the KV cache of this rank's sequences.
// Hears     StepPlan: embeds its tokens and runs all layers, then LayersDone to the LM-head actor.
//           ForwardLayers from the MTP actor: the same layers code over other rows.
//           FeedForwardDone: the MoE actor has added a layer's feed-forward part; the next layer.
// Says      FeedForward per layer to the MoE actor, LayersDone at the end.
//
// Holds     one forward at a time; layers in ascending order.
#pragma once

#include <vector>

#include "actors/actor.h"
#include "actors/rank_context.h"
#include "layers/mla.h"
#include "layers/rope.h"

namespace troupe::actors {

class AttentionActor final : public Actor {
 public:
  AttentionActor(Mailbox& mailbox, const RankContext& context);

 private:
  void on(const msg::StepPlan& plan) override;
  void on(const msg::ForwardLayers& forward, const msg::Address& from) override;
  void on(const msg::FeedForwardDone& done) override;

  void take_plan(const msg::StepPlan& plan);
  // The rows' positions decide rope angles and what attention may see.
  void begin_forward(Matrix<const int32_t> sequences, Matrix<const int32_t> positions);
  void run_layer();
  void run_attention(const model::AttentionWeights& weights, Matrix<const float> normed,
                     Matrix<float> out);
  Matrix<float> project_query(const model::AttentionWeights& weights, Matrix<const float> normed);
  void write_latents(const model::AttentionWeights& weights, Matrix<const float> normed);
  const model::LayerWeights& layer_weights(int layer) const;

  RankContext context_;
  layers::Rope rope_;
  layers::MlaShape shape_;

  struct Forward {
    int layer = 0, last_layer = 0;
    int max_rows = 0;
    msg::Tensor hidden;
    msg::Address reply_to;
  } forward_;
  std::vector<std::span<const int32_t>> block_tables_;  // of the plan's sequences
  std::vector<layers::MlaQuery> queries_;               // of the forward's rows

  // [max_rows, ...]
  msg::Tensor hidden_, normed_, sequences_, positions_, cos_, sin_, query_latent_, query_, latent_,
      absorbed_, attended_, heads_out_, projected_;
};

// residual = round(residual + addend), element by element.
void add_rows(Matrix<float> residual, Matrix<const float> addend, layers::Rounding rounding);

// rows[i] = table[ids[i]], widened to fp32. UserError-free: ids were checked by the scheduler.
void embed(const model::Embedding& table, std::span<const int32_t> ids, Matrix<float> rows);

}  // namespace troupe::actors
