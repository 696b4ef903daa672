#include "actors/mla_attention.h"

#include <cstring>

#include "layers/linear.h"
#include "layers/rms_norm.h"
#include "layers/team.h"

namespace troupe::actors {

using comm::TraceOp;
using layers::Rounding;

MlaAttention::MlaAttention(const RankContext& context) : context_(context), rotary_(context) {
  const model::ModelConfig& c = context_.config;
  const int heads =
      static_cast<int>(context_.layout.heads(context_.communicator.world_rank()).size());
  shape_ = {.num_heads = heads,
            .kv_lora_rank = static_cast<int>(c.kv_lora_rank),
            .rope_dim = static_cast<int>(c.qk_rope_head_dim),
            .softmax_scale = c.softmax_scale()};
  const auto rows = [&](int64_t cols) {
    return context_.workspace.allocate(context_.max_rows, cols);
  };
  query_latent_ = rows(c.q_lora_rank);
  query_ = rows(heads * c.qk_head_dim());
  latent_ = rows(c.kv_width());
  absorbed_ = rows(heads * c.kv_width());
  attended_ = rows(heads * c.kv_lora_rank);
  heads_out_ = rows(heads * c.v_head_dim);
  head_inputs_.resize(heads);
  jobs_.reserve(heads);
}

void MlaAttention::begin_forward(std::span<const layers::KvQuery> queries,
                                 Matrix<const int32_t> positions) {
  queries_ = queries;
  rotary_.set_positions(positions);
}

Matrix<float> MlaAttention::attend(int layer, const model::AttentionWeights& weights,
                                   Matrix<const float> normed) {
  const model::MlaWeights& mla = *weights.mla;
  const Matrix<float> query = project_query(mla, normed);
  write_latents(layer, mla, normed);
  const Matrix<float> absorbed = absorb(mla, query);
  const Matrix<float> attended = context_.workspace.floats(first_rows(attended_, normed.rows));
  comm::TraceSpan span = context_.span(TraceOp::kAttend, normed.rows);
  layers::mla_attention(shape_, context_.kv_cache, layer, queries_, absorbed, attended);
  span.end();
  return to_values(mla, attended);
}

layers::PreparedRows MlaAttention::prepare(const model::PackedMatrix& weight,
                                           Matrix<const float> rows) {
  return inputs_.prepare(weight, rows, context_.rounding);
}

Matrix<float> MlaAttention::project_query(const model::MlaWeights& weights,
                                          Matrix<const float> normed) {
  const auto span = context_.span(TraceOp::kQueryProjection, normed.rows);
  const model::ModelConfig& c = context_.config;
  const Matrix<float> query = context_.workspace.floats(first_rows(query_, normed.rows));
  if (c.q_lora_rank > 0) {
    const Matrix<float> low = context_.workspace.floats(first_rows(query_latent_, normed.rows));
    layers::linear(weights.q_a, prepare(weights.q_a, normed), low, context_.rounding);
    layers::rms_norm(low, weights.q_a_norm, c.rms_norm_eps, low, context_.rounding);
    layers::linear(weights.q_b, prepare(weights.q_b, low), query, context_.rounding);
  } else {
    layers::linear(weights.q_b, prepare(weights.q_b, normed), query, context_.rounding);
  }
  rotary_.rotate(query.columns_from(c.qk_nope_head_dim, query.cols - c.qk_nope_head_dim),
                 shape_.num_heads, c.qk_head_dim());
  return query;
}

void MlaAttention::write_latents(int layer, const model::MlaWeights& weights,
                                 Matrix<const float> normed) {
  const auto span = context_.span(TraceOp::kKvProjection, normed.rows);
  const model::ModelConfig& c = context_.config;
  const Matrix<float> latent = context_.workspace.floats(first_rows(latent_, normed.rows));
  layers::linear(weights.kv_a, prepare(weights.kv_a, normed), latent, context_.rounding);
  const Matrix<float> compressed = latent.columns_from(0, c.kv_lora_rank);
  layers::rms_norm(compressed, weights.kv_a_norm, c.rms_norm_eps, compressed, context_.rounding);
  rotary_.rotate(latent.columns_from(c.kv_lora_rank, c.qk_rope_head_dim), 1, c.qk_rope_head_dim);
  const bool int8 = context_.kv_cache.shape().type == layers::KvType::kInt8;
  const std::span<const float> scales = int8 ? weights.ckv_scale : std::span<const float>();
  layers::parallel_for(
      latent.rows, layers::row_grain(latent.cols), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
          context_.kv_cache.write(layer, queries_[r].block_table, queries_[r].position,
                                  {latent.row(r), static_cast<size_t>(latent.cols)}, scales);
      });
}

Matrix<float> MlaAttention::absorb(const model::MlaWeights& weights, Matrix<const float> query) {
  const auto span = context_.span(TraceOp::kAbsorb, query.rows);
  const model::ModelConfig& c = context_.config;
  const Matrix<float> absorbed = context_.workspace.floats(first_rows(absorbed_, query.rows));
  jobs_.clear();
  for (int h = 0; h < shape_.num_heads; ++h) {
    const Matrix<const float> from = query.columns_from(h * c.qk_head_dim(), c.qk_head_dim());
    const Matrix<float> to = absorbed.columns_from(h * c.kv_width(), c.kv_width());
    jobs_.push_back(
        {&weights.w_uk[h],
         head_inputs_[h].prepare(weights.w_uk[h], from.columns_from(0, c.qk_nope_head_dim),
                                 context_.rounding),
         to.columns_from(0, c.kv_lora_rank)});
  }
  const int64_t rotated = int64_t{shape_.num_heads} * c.qk_rope_head_dim;
  layers::parallel_for(query.rows, layers::row_grain(rotated), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int h = 0; h < shape_.num_heads; ++h)
        std::memcpy(absorbed.row(r) + h * c.kv_width() + c.kv_lora_rank,
                    query.row(r) + h * c.qk_head_dim() + c.qk_nope_head_dim,
                    c.qk_rope_head_dim * sizeof(float));
  });
  layers::grouped_linear(jobs_, Rounding::kNone);
  return absorbed;
}

// What attention summed is not rounded to bf16: products of fp32 inputs, or of int8 ones.
Matrix<float> MlaAttention::to_values(const model::MlaWeights& weights,
                                      Matrix<const float> attended) {
  const auto span = context_.span(TraceOp::kValueProjection, attended.rows);
  const model::ModelConfig& c = context_.config;
  const Matrix<float> heads_out = context_.workspace.floats(first_rows(heads_out_, attended.rows));
  jobs_.clear();
  for (int h = 0; h < shape_.num_heads; ++h)
    jobs_.push_back({&weights.w_uv[h],
                     head_inputs_[h].prepare(
                         weights.w_uv[h], attended.columns_from(h * c.kv_lora_rank, c.kv_lora_rank),
                         Rounding::kNone),
                     heads_out.columns_from(h * c.v_head_dim, c.v_head_dim)});
  layers::grouped_linear(jobs_, context_.rounding);
  return heads_out;
}

}  // namespace troupe::actors
