// actors/attention_actor.h: the decoder layers of one rank: embedding, attention, and the layer
// loop.
//
// Owns      the rows (residual stream) of the step and the KV cache of this rank's sequences. The
//           ranks of an attention tensor-parallel group run the same sequences: each computes its
//           heads for all their rows (AttentionOp), and keeps one slice of the residual stream
//           (sequence parallelism), so that between stages no two ranks hold the same row.
// Hears     StepPlan: embeds its tokens and runs all layers, then LayersDone to the LM-head actor.
//           ForwardLayers from the MTP actor: the same layers code over other rows.
//           FeedForwardDone: the MoE actor has added a layer's feed-forward part; the next layer.
// Says      FeedForward per layer to the MoE actor, LayersDone at the end.
//
// Holds     one forward at a time; layers in ascending order.
#pragma once

#include <vector>

#include "actors/actor.h"
#include "actors/attention_op.h"
#include "actors/embedding_lookup.h"
#include "actors/rank_context.h"
#include "actors/row_exchange.h"
#include "layers/prepared_rows.h"

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
  void norm(Matrix<const float> rows, std::span<const float> weight, Matrix<float> out) const;
  // Attention of all rows of the group, o_proj of the own ones.
  void run_attention(const model::AttentionWeights& weights, Matrix<const float> normed,
                     Matrix<float> out);
  void project_output(const model::AttentionWeights& weights, Matrix<const float> heads_out,
                      Matrix<float> out);
  Matrix<const float> heads_to_rows(Matrix<const float> heads_out);
  void share_row_counts();
  void gather_hidden();
  void show_hidden(LayerStage after) const;
  model::Range own_slice(int64_t rows) const;
  const model::LayerWeights& layer_weights(int layer) const;

  RankContext context_;
  EmbeddingLookup embedding_;
  std::unique_ptr<AttentionOp> op_;
  bool tensor_parallel_;     // any axis: then ranks must know each other's row counts
  RowExchange group_rows_;   // attn_tp
  RowExchange o_proj_rows_;  // o_proj_tp

  struct Forward {
    int layer = 0, last_layer = 0;
    int max_rows = 0;
    msg::Tensor hidden;  // all rows of the group
    model::Range own;    // this rank's slice of them
    msg::Address reply_to;
  } forward_;
  bool observe_layers_ = false;
  layers::InputBuffer inputs_;
  std::vector<std::span<const int32_t>> block_tables_;   // of the plan's sequences
  std::vector<std::span<const int32_t>> window_tables_;  // theirs, empty without such layers
  std::vector<layers::KvQuery> queries_;                 // of the forward's rows
  std::vector<int32_t> step_tokens_;                     // of the plan
  std::vector<Matrix<const float>> send_views_;
  std::vector<Matrix<float>> receive_views_;

  // [max_rows, ...]
  msg::Tensor hidden_, normed_, sequences_, positions_, all_heads_out_, projected_;
  msg::Tensor o_proj_inputs_, partial_;  // [rows of the o_proj group, ...]
  msg::Tensor world_rows_;               // [world, 1] int32
};

// residual = round(residual + addend), element by element.
void add_rows(Matrix<float> residual, Matrix<const float> addend, layers::Rounding rounding);

}  // namespace troupe::actors
