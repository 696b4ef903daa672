#include "actors/attention_actor.h"

#include <cstring>

#include "layers/bias.h"
#include "layers/linear.h"
#include "layers/rms_norm.h"
#include "layers/team.h"

namespace troupe::actors {

using comm::TraceOp;
using layers::Rounding;

void add_rows(Matrix<float> residual, Matrix<const float> addend, Rounding rounding) {
  layers::parallel_for(residual.rows, layers::row_grain(residual.cols),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t r = begin; r < end; ++r) {
                           float* out = residual.row(r);
                           const float* in = addend.row(r);
                           if (rounding == Rounding::kBf16) {
                             for (int64_t i = 0; i < residual.cols; ++i)
                               out[i] = round_to_bf16(out[i] + in[i]);
                           } else {
                             for (int64_t i = 0; i < residual.cols; ++i) out[i] += in[i];
                           }
                         }
                       });
}

AttentionActor::AttentionActor(Mailbox& mailbox, const RankContext& context)
    : Actor(mailbox, msg::ActorKind::Attention),
      context_(context),
      embedding_(context, context.weights.embed),
      op_(make_attention_op(context)),
      tensor_parallel_(context.layout.uses_tensor_parallelism()),
      group_rows_(context.groups->attn_tp),
      o_proj_rows_(context.groups->o_proj_tp) {
  const model::ModelConfig& c = context_.config;
  const auto rows = [&](int64_t cols) {
    return context_.workspace.allocate(context_.max_rows, cols);
  };
  hidden_ = rows(c.hidden_size);
  normed_ = rows(c.hidden_size);
  sequences_ = rows(1);
  positions_ = rows(1);
  all_heads_out_ = rows(c.num_attention_heads * c.v_head_dim);
  projected_ = rows(c.hidden_size);
  const auto o_proj_rows = static_cast<int64_t>(context_.max_rows) * o_proj_rows_.size();
  o_proj_inputs_ = context_.workspace.allocate(o_proj_rows, c.num_attention_heads * c.v_head_dim);
  partial_ = context_.workspace.allocate(o_proj_rows, c.hidden_size);
  world_rows_ = context_.workspace.allocate(context_.communicator.world_size(), 1);
  step_tokens_.reserve(context_.max_rows);
  block_tables_.reserve(context_.max_sequences);
  queries_.reserve(context_.max_rows);
}

const model::LayerWeights& AttentionActor::layer_weights(int layer) const {
  return layer == context_.mtp_layer() ? context_.weights.mtp->layer
                                       : context_.weights.layers[layer];
}

model::Range AttentionActor::own_slice(int64_t rows) const {
  return model::piece(rows, group_rows_.group().rank(), group_rows_.size());
}

void AttentionActor::take_plan(const msg::StepPlan& plan) {
  block_tables_.clear();
  step_tokens_.clear();
  Matrix<int32_t> sequences = context_.workspace.ints(sequences_);
  Matrix<int32_t> positions = context_.workspace.ints(positions_);
  for (const msg::SequencePlan* sequence : *plan.sequences()) {
    const auto& tokens = *sequence->tokens();
    TROUPE_CHECK(step_tokens_.size() + tokens.size() <= static_cast<size_t>(context_.max_rows),
                 "{} + {} rows", step_tokens_.size(), tokens.size());
    for (unsigned i = 0; i < tokens.size(); ++i) {
      const auto row = static_cast<int64_t>(step_tokens_.size());
      sequences.row(row)[0] = static_cast<int32_t>(block_tables_.size());
      positions.row(row)[0] = sequence->first_position() + static_cast<int32_t>(i);
      step_tokens_.push_back(tokens[i]);
    }
    block_tables_.emplace_back(sequence->block_table()->data(), sequence->block_table()->size());
  }
  const auto rows = static_cast<int64_t>(step_tokens_.size());
  forward_ = {.layer = 0,
              .last_layer = context_.config.num_hidden_layers,
              .max_rows = plan.max_rows(),
              .hidden = first_rows(hidden_, rows),
              .own = own_slice(rows),
              .reply_to = neighbour(msg::ActorKind::LmHead)};
}

void AttentionActor::on(const msg::StepPlan& plan) {
  observe_layers_ = (plan.observe() & static_cast<uint8_t>(msg::Observe::Layers)) != 0;
  take_plan(plan);
  const int64_t rows = forward_.hidden.rows();
  comm::TraceSpan span(trace(), TraceOp::kEmbedding, forward_.own.size());
  embedding_.lookup(std::span(step_tokens_).subspan(forward_.own.begin, forward_.own.size()),
                    context_.workspace.floats(slice_rows(forward_.hidden, forward_.own)));
  span.end();
  begin_forward(context_.workspace.ints(first_rows(sequences_, rows)),
                context_.workspace.ints(first_rows(positions_, rows)));
}

void AttentionActor::on(const msg::ForwardLayers& forward, const msg::Address& from) {
  forward_ = {.layer = forward.first_layer(),
              .last_layer = forward.last_layer(),
              .max_rows = forward.max_rows(),
              .hidden = *forward.hidden(),
              .own = own_slice(forward.hidden()->rows()),
              .reply_to = from};
  begin_forward(context_.workspace.ints(*forward.sequences()),
                context_.workspace.ints(*forward.positions()));
}

// One small all_gather per forward, so that no stage needs to exchange counts.
void AttentionActor::share_row_counts() {
  const Matrix<int32_t> rows = context_.workspace.ints(world_rows_);
  const std::span<int32_t> all(rows.data, static_cast<size_t>(rows.rows));
  const std::span<int32_t> own = all.subspan(context_.communicator.world_rank(), 1);
  own[0] = static_cast<int32_t>(forward_.own.size());
  if (tensor_parallel_)
    context_.groups->world.all_gather(std::as_bytes(own), std::as_writable_bytes(all));
  group_rows_.set_rows(all);
  o_proj_rows_.set_rows(all);
}

void AttentionActor::begin_forward(Matrix<const int32_t> sequences,
                                   Matrix<const int32_t> positions) {
  share_row_counts();
  show_hidden(LayerStage::kInput);
  queries_.clear();
  for (int64_t r = 0; r < positions.rows; ++r)
    queries_.push_back({block_tables_[sequences.row(r)[0]], positions.row(r)[0]});
  op_->begin_forward(queries_, positions);
  run_layer();
}

void AttentionActor::on(const msg::FeedForwardDone& done) {
  TROUPE_CHECK(done.layer() == forward_.layer, "{} instead of {}", done.layer(), forward_.layer);
  show_hidden(LayerStage::kFeedForward);
  if (++forward_.layer < forward_.last_layer) return run_layer();
  context_.communicator.enter_layer(-1);
  gather_hidden();
  tell(forward_.reply_to, [&](auto& b) { return msg::CreateLayersDone(b, &forward_.hidden); });
}

void AttentionActor::gather_hidden() {
  if (group_rows_.size() == 1) return;
  const Matrix<float> hidden = context_.workspace.floats(forward_.hidden);
  const Matrix<const float> all = group_rows_.gather(
      context_.workspace.floats(slice_rows(forward_.hidden, forward_.own)), context_.row_format());
  std::memcpy(hidden.data, all.data, all.rows * all.cols * sizeof(float));
}

void AttentionActor::show_hidden(LayerStage after) const {
  if (!observe_layers_) return;
  const Matrix<const float> own =
      context_.workspace.floats(slice_rows(forward_.hidden, forward_.own));
  std::memcpy(context_.observation.hidden(forward_.layer, after).data, own.data,
              own.rows * own.cols * sizeof(float));
}

void AttentionActor::run_layer() {
  context_.communicator.enter_layer(forward_.layer);
  const model::LayerWeights& weights = layer_weights(forward_.layer);
  const int64_t rows = forward_.own.size();
  const auto span = context_.span(TraceOp::kAttention, rows);
  const msg::Tensor hidden_tensor = slice_rows(forward_.hidden, forward_.own);
  const msg::Tensor normed_tensor = first_rows(normed_, rows);
  const Matrix<float> hidden = context_.workspace.floats(hidden_tensor);
  const Matrix<float> normed = context_.workspace.floats(normed_tensor);
  const Matrix<float> projected = context_.workspace.floats(first_rows(projected_, rows));

  norm(hidden, weights.input_norm, normed);
  run_attention(weights.attention, group_rows_.gather(normed, context_.row_format()), projected);
  {
    const auto residual = context_.span(TraceOp::kResidual, rows);
    add_rows(hidden, projected, context_.rounding);
  }
  show_hidden(LayerStage::kAttention);
  norm(hidden, weights.post_attention_norm, normed);

  tell(neighbour(msg::ActorKind::Moe), [&](auto& b) {
    return msg::CreateFeedForward(b, forward_.layer, forward_.max_rows, &normed_tensor,
                                  &hidden_tensor, &world_rows_);
  });
}

void AttentionActor::norm(Matrix<const float> rows, std::span<const float> weight,
                          Matrix<float> out) const {
  const auto span = context_.span(TraceOp::kRmsNorm, rows.rows);
  layers::rms_norm(rows, weight, context_.config.rms_norm_eps, out, context_.rounding);
}

void AttentionActor::run_attention(const model::AttentionWeights& weights,
                                   Matrix<const float> normed, Matrix<float> out) {
  project_output(weights, op_->attend(forward_.layer, weights, normed), out);
}

// All-to-all within the attention group: from its rows with my heads to my rows with all heads.
Matrix<const float> AttentionActor::heads_to_rows(Matrix<const float> heads_out) {
  if (group_rows_.size() == 1) return heads_out;
  const Matrix<float> all =
      context_.workspace.floats(first_rows(all_heads_out_, forward_.own.size()));
  send_views_.clear();
  receive_views_.clear();
  for (int r = 0; r < group_rows_.size(); ++r) {
    send_views_.push_back(group_rows_.rows_of(r, heads_out));
    const model::Range heads = context_.layout.heads(group_rows_.group().world_rank(r));
    receive_views_.push_back(all.columns_from(heads.begin * context_.config.v_head_dim,
                                              heads.size() * context_.config.v_head_dim));
  }
  group_rows_.exchange(send_views_, receive_views_, context_.row_format());
  return all;
}

// out = o_proj of the own rows. Cut by the heads each rank has (row-parallel, partial sums to the
// rows' owners), or after heads became rows: by o_proj_tp, or whole on every rank.
void AttentionActor::project_output(const model::AttentionWeights& weights,
                                    Matrix<const float> heads_out, Matrix<float> out) {
  const auto span = context_.span(TraceOp::kOutputProjection, out.rows);
  const bool by_heads = o_proj_rows_.size() == group_rows_.size();
  Matrix<const float> inputs = by_heads ? heads_out : heads_to_rows(heads_out);
  if (!by_heads && o_proj_rows_.size() > 1) {
    const int64_t width = inputs.cols;
    const auto part = [&](int r) {
      return model::ParallelLayout::columns(width, r, o_proj_rows_.size());
    };
    const model::Range mine = part(o_proj_rows_.group().rank());
    const Matrix<float> all(context_.workspace.floats(o_proj_inputs_).data,
                            o_proj_rows_.total_rows(), mine.size());
    send_views_.clear();
    receive_views_.clear();
    for (int r = 0; r < o_proj_rows_.size(); ++r) {
      send_views_.push_back(inputs.columns_from(part(r).begin, part(r).size()));
      receive_views_.push_back(o_proj_rows_.rows_of(r, all));
    }
    o_proj_rows_.exchange(send_views_, receive_views_, context_.row_format());
    inputs = all;
  }
  const Matrix<float> partial = context_.workspace.floats(first_rows(partial_, inputs.rows));
  layers::linear(weights.o, inputs_.prepare(weights.o, inputs, context_.rounding), partial,
                 Rounding::kNone);
  if (weights.o_bias.empty()) return o_proj_rows_.scatter_sum(partial, out, context_.rounding);
  o_proj_rows_.scatter_sum(partial, out, Rounding::kNone);
  layers::add_bias(out, weights.o_bias, context_.rounding);
}

}  // namespace troupe::actors
