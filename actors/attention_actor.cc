#include "actors/attention_actor.h"

#include <cstring>

#include "layers/linear.h"
#include "layers/rms_norm.h"

namespace troupe::actors {

using layers::Rounding;

namespace {

Matrix<float> columns(Matrix<float> m, int64_t first, int64_t count) {
  return {m.data + first, m.rows, count, m.stride};
}

}  // namespace

void add_rows(Matrix<float> residual, Matrix<const float> addend, Rounding rounding) {
  for (int64_t r = 0; r < residual.rows; ++r) {
    float* out = residual.row(r);
    const float* in = addend.row(r);
    if (rounding == Rounding::kBf16) {
      for (int64_t i = 0; i < residual.cols; ++i) out[i] = round_to_bf16(out[i] + in[i]);
    } else {
      for (int64_t i = 0; i < residual.cols; ++i) out[i] += in[i];
    }
  }
}

void embed(const model::Embedding& table, std::span<const int32_t> ids, Matrix<float> rows) {
  for (size_t i = 0; i < ids.size(); ++i) {
    TROUPE_CHECK(ids[i] >= table.vocab.begin && ids[i] < table.vocab.end, "token {}", ids[i]);
    const int64_t first = (ids[i] - table.vocab.begin) * rows.cols;
    float* out = rows.row(static_cast<int64_t>(i));
    if (table.dtype == model::Dtype::kF32) {
      std::memcpy(out, reinterpret_cast<const float*>(table.rows) + first, rows.cols * sizeof(float));
    } else {
      const auto* in = reinterpret_cast<const Bf16*>(table.rows) + first;
      for (int64_t c = 0; c < rows.cols; ++c) out[c] = to_float(in[c]);
    }
  }
}

AttentionActor::AttentionActor(Mailbox& mailbox, const RankContext& context)
    : Actor(mailbox, msg::ActorKind::Attention),
      context_(context),
      rope_(static_cast<int>(context.config.qk_rope_head_dim), context.config.rope_theta,
            context.config.yarn) {
  const model::ModelConfig& c = context_.config;
  const int heads =
      static_cast<int>(context_.layout.heads(context_.communicator.world_rank()).size());
  shape_ = {.num_heads = heads,
            .kv_lora_rank = static_cast<int>(c.kv_lora_rank),
            .rope_dim = static_cast<int>(c.qk_rope_head_dim),
            .softmax_scale = c.softmax_scale()};
  const auto rows = [&](int64_t cols) { return context_.workspace.allocate(context_.max_rows, cols); };
  hidden_ = rows(c.hidden_size);
  normed_ = rows(c.hidden_size);
  sequences_ = rows(1);
  positions_ = rows(1);
  cos_ = rows(c.qk_rope_head_dim / 2);
  sin_ = rows(c.qk_rope_head_dim / 2);
  query_latent_ = rows(c.q_lora_rank);
  query_ = rows(heads * c.qk_head_dim());
  latent_ = rows(c.kv_width());
  absorbed_ = rows(heads * c.kv_width());
  attended_ = rows(heads * c.kv_lora_rank);
  heads_out_ = rows(heads * c.v_head_dim);
  projected_ = rows(c.hidden_size);
  block_tables_.reserve(context_.max_sequences);
  queries_.reserve(context_.max_rows);
}

const model::LayerWeights& AttentionActor::layer_weights(int layer) const {
  return layer == context_.mtp_layer() ? context_.weights.mtp->layer
                                       : context_.weights.layers[layer];
}

void AttentionActor::take_plan(const msg::StepPlan& plan) {
  block_tables_.clear();
  Matrix<int32_t> sequences = context_.workspace.ints(sequences_);
  Matrix<int32_t> positions = context_.workspace.ints(positions_);
  const Matrix<float> hidden = context_.workspace.floats(hidden_);
  int64_t row = 0;
  for (const msg::SequencePlan* sequence : *plan.sequences()) {
    const auto tokens = std::span(sequence->tokens()->data(), sequence->tokens()->size());
    TROUPE_CHECK(row + static_cast<int64_t>(tokens.size()) <= context_.max_rows, "{} rows", row);
    embed(context_.weights.embed, tokens, hidden.rows_from(row, static_cast<int64_t>(tokens.size())));
    for (size_t i = 0; i < tokens.size(); ++i, ++row) {
      sequences.row(row)[0] = static_cast<int32_t>(block_tables_.size());
      positions.row(row)[0] = sequence->first_position() + static_cast<int32_t>(i);
    }
    block_tables_.emplace_back(sequence->block_table()->data(), sequence->block_table()->size());
  }
  forward_ = {.layer = 0,
              .last_layer = context_.config.num_hidden_layers,
              .max_rows = plan.max_rows(),
              .hidden = first_rows(hidden_, row),
              .reply_to = neighbour(msg::ActorKind::LmHead)};
}

void AttentionActor::begin_forward(Matrix<const int32_t> sequences,
                                   Matrix<const int32_t> positions) {
  queries_.clear();
  for (int64_t r = 0; r < positions.rows; ++r)
    queries_.push_back({block_tables_[sequences.row(r)[0]], positions.row(r)[0]});
  rope_.angles({positions.data, static_cast<size_t>(positions.rows)},
               context_.workspace.floats(first_rows(cos_, positions.rows)),
               context_.workspace.floats(first_rows(sin_, positions.rows)));
  run_layer();
}

void AttentionActor::on(const msg::StepPlan& plan) {
  take_plan(plan);
  const int64_t rows = forward_.hidden.rows();
  begin_forward(context_.workspace.ints(first_rows(sequences_, rows)),
                context_.workspace.ints(first_rows(positions_, rows)));
}

void AttentionActor::on(const msg::ForwardLayers& forward, const msg::Address& from) {
  forward_ = {.layer = forward.first_layer(),
              .last_layer = forward.last_layer(),
              .max_rows = forward.max_rows(),
              .hidden = *forward.hidden(),
              .reply_to = from};
  begin_forward(context_.workspace.ints(*forward.sequences()),
                context_.workspace.ints(*forward.positions()));
}

void AttentionActor::on(const msg::FeedForwardDone& done) {
  TROUPE_CHECK(done.layer() == forward_.layer, "{} instead of {}", done.layer(), forward_.layer);
  if (++forward_.layer < forward_.last_layer) return run_layer();
  context_.communicator.enter_layer(-1);
  send(forward_.reply_to, msg::CreateLayersDone(builder(), &forward_.hidden));
}

void AttentionActor::run_layer() {
  context_.communicator.enter_layer(forward_.layer);
  const model::LayerWeights& weights = layer_weights(forward_.layer);
  const int64_t rows = forward_.hidden.rows();
  const Matrix<float> hidden = context_.workspace.floats(forward_.hidden);
  const msg::Tensor normed_tensor = first_rows(normed_, rows);
  const Matrix<float> normed = context_.workspace.floats(normed_tensor);
  const Matrix<float> projected = context_.workspace.floats(first_rows(projected_, rows));
  const float eps = context_.config.rms_norm_eps;

  layers::rms_norm(hidden, weights.input_norm, eps, normed, context_.rounding);
  run_attention(weights.attention, normed, projected);
  add_rows(hidden, projected, context_.rounding);
  layers::rms_norm(hidden, weights.post_attention_norm, eps, normed, context_.rounding);

  send(neighbour(msg::ActorKind::Moe),
       msg::CreateFeedForward(builder(), forward_.layer, forward_.max_rows, &normed_tensor,
                              &forward_.hidden));
}

Matrix<float> AttentionActor::project_query(const model::AttentionWeights& weights,
                                            Matrix<const float> normed) {
  const model::ModelConfig& c = context_.config;
  const Matrix<float> query = context_.workspace.floats(first_rows(query_, normed.rows));
  if (c.q_lora_rank > 0) {
    const Matrix<float> low = context_.workspace.floats(first_rows(query_latent_, normed.rows));
    layers::linear(weights.q_a, normed, low, context_.rounding);
    layers::rms_norm(low, weights.q_a_norm, c.rms_norm_eps, low, context_.rounding);
    layers::linear(weights.q_b, low, query, context_.rounding);
  } else {
    layers::linear(weights.q_b, normed, query, context_.rounding);
  }
  layers::apply_rope({query.data + c.qk_nope_head_dim, query.rows,
                      query.cols - c.qk_nope_head_dim, query.stride},
                     shape_.num_heads, c.qk_head_dim(),
                     context_.workspace.floats(first_rows(cos_, normed.rows)),
                     context_.workspace.floats(first_rows(sin_, normed.rows)), context_.rounding);
  return query;
}

void AttentionActor::write_latents(const model::AttentionWeights& weights,
                                   Matrix<const float> normed) {
  const model::ModelConfig& c = context_.config;
  const Matrix<float> latent = context_.workspace.floats(first_rows(latent_, normed.rows));
  layers::linear(weights.kv_a, normed, latent, context_.rounding);
  const Matrix<float> compressed = columns(latent, 0, c.kv_lora_rank);
  layers::rms_norm(compressed, weights.kv_a_norm, c.rms_norm_eps, compressed, context_.rounding);
  layers::apply_rope(columns(latent, c.kv_lora_rank, c.qk_rope_head_dim), 1, c.qk_rope_head_dim,
                     context_.workspace.floats(first_rows(cos_, normed.rows)),
                     context_.workspace.floats(first_rows(sin_, normed.rows)), context_.rounding);
  for (int64_t r = 0; r < latent.rows; ++r)
    context_.kv_cache.write(forward_.layer, queries_[r].block_table, queries_[r].position,
                            {latent.row(r), static_cast<size_t>(latent.cols)});
}

void AttentionActor::run_attention(const model::AttentionWeights& weights,
                                   Matrix<const float> normed, Matrix<float> out) {
  const model::ModelConfig& c = context_.config;
  const int64_t rows = normed.rows;
  const Matrix<float> query = project_query(weights, normed);
  write_latents(weights, normed);

  const Matrix<float> absorbed = context_.workspace.floats(first_rows(absorbed_, rows));
  for (int h = 0; h < shape_.num_heads; ++h) {
    const Matrix<float> from = columns(query, h * c.qk_head_dim(), c.qk_head_dim());
    const Matrix<float> to = columns(absorbed, h * c.kv_width(), c.kv_width());
    layers::linear(weights.w_uk[h], columns(from, 0, c.qk_nope_head_dim),
                   columns(to, 0, c.kv_lora_rank), Rounding::kNone);
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to.row(r) + c.kv_lora_rank, from.row(r) + c.qk_nope_head_dim,
                  c.qk_rope_head_dim * sizeof(float));
  }

  const Matrix<float> attended = context_.workspace.floats(first_rows(attended_, rows));
  layers::mla_attention(shape_, context_.kv_cache, forward_.layer, queries_, absorbed, attended);

  const Matrix<float> heads_out = context_.workspace.floats(first_rows(heads_out_, rows));
  for (int h = 0; h < shape_.num_heads; ++h)
    layers::linear(weights.w_uv[h], columns(attended, h * c.kv_lora_rank, c.kv_lora_rank),
                   columns(heads_out, h * c.v_head_dim, c.v_head_dim), context_.rounding);
  layers::linear(weights.o, heads_out, out, context_.rounding);
}

}  // namespace troupe::actors
