#include "actors/mla_attention.h"

#include <algorithm>
#include <cstring>

#include "layers/linear.h"
#include "layers/rms_norm.h"
#include "layers/team.h"

namespace troupe::actors {

using comm::TraceOp;
using layers::Rounding;

namespace {

// Rows that go through attention together: what lies between its products is wide (a latent and a
// rotated part for every head, in fp32) and stays in the cache from one to the next.
constexpr int64_t kRows = 64;

}  // namespace

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
  const int64_t few_rows = std::min<int64_t>(context_.max_rows, kRows);
  absorbed_ = context_.workspace.allocate(few_rows, heads * c.kv_width());
  attended_ = context_.workspace.allocate(few_rows, heads * c.kv_lora_rank);
  heads_out_ = rows(heads * c.v_head_dim);
  head_inputs_.resize(heads);
  jobs_.resize(heads);
}

void MlaAttention::begin_forward(std::span<const layers::KvQuery> queries,
                                 Matrix<const int32_t> positions) {
  queries_ = queries;
  rotary_.set_positions(positions);
}

Matrix<float> MlaAttention::attend(int layer, const model::AttentionWeights& weights,
                                   Matrix<const float> normed) {
  const model::MlaWeights& mla = *weights.mla;
  const Matrix<float> query = project(mla, normed);
  write_latents(layer, mla, normed.rows);
  const Matrix<float> heads_out = context_.workspace.floats(first_rows(heads_out_, normed.rows));
  for (int64_t first = 0; first < normed.rows; first += kRows) {
    const int64_t count = std::min(kRows, normed.rows - first);
    attend_rows(layer, mla, queries_.subspan(first, count), query.rows_from(first, count),
                heads_out.rows_from(first, count));
  }
  return heads_out;
}

void MlaAttention::attend_rows(int layer, const model::MlaWeights& weights,
                               std::span<const layers::KvQuery> queries, Matrix<const float> query,
                               Matrix<float> heads_out) {
  const Matrix<float> absorbed = absorb(weights, query);
  const Matrix<float> attended = context_.workspace.floats(first_rows(attended_, query.rows));
  {
    const auto span = context_.span(TraceOp::kAttend, query.rows);
    layers::mla_attention(shape_, context_.kv_cache, layer, queries, absorbed, attended);
  }
  to_values(weights, attended, heads_out);
}

// The queries, and latents that have yet to be normed: the first products of both are one list of
// tiles, over the same inputs where they read them in one form.
Matrix<float> MlaAttention::project(const model::MlaWeights& weights, Matrix<const float> normed) {
  const auto span = context_.span(TraceOp::kQueryProjection, normed.rows);
  const model::ModelConfig& c = context_.config;
  const Rounding rounding = context_.rounding;
  const Matrix<float> query = context_.workspace.floats(first_rows(query_, normed.rows));
  const Matrix<float> low = context_.workspace.floats(first_rows(query_latent_, normed.rows));
  const Matrix<float> latent = context_.workspace.floats(first_rows(latent_, normed.rows));
  const bool has_low = c.q_lora_rank > 0;
  const model::PackedMatrix& first = has_low ? weights.q_a : weights.q_b;
  const layers::PreparedRows inputs = inputs_.prepare(first, normed, rounding);
  const bool share = inputs.form == layers::input_form(weights.kv_a, rounding);
  const layers::LinearJob jobs[] = {
      {&first, inputs, has_low ? low : query},
      {&weights.kv_a, share ? inputs : latent_inputs_.prepare(weights.kv_a, normed, rounding),
       latent}};
  layers::grouped_linear(jobs, rounding);
  if (has_low) {
    const layers::PreparedRows low_inputs =
        inputs_.prepare(weights.q_b, low, rounding, [&](int64_t r, Matrix<float> row) {
          layers::rms_norm(low.rows_from(r, 1), weights.q_a_norm, c.rms_norm_eps, row, rounding);
        });
    layers::linear(weights.q_b, low_inputs, query, rounding);
  }
  rotary_.rotate(query.columns_from(c.qk_nope_head_dim, query.cols - c.qk_nope_head_dim),
                 shape_.num_heads, c.qk_head_dim());
  return query;
}

void MlaAttention::write_latents(int layer, const model::MlaWeights& weights, int64_t rows) {
  const auto span = context_.span(TraceOp::kKvProjection, rows);
  const model::ModelConfig& c = context_.config;
  const Matrix<float> latent = context_.workspace.floats(first_rows(latent_, rows));
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
  const int64_t key_width = c.qk_nope_head_dim;
  layers::parallel_for(
      shape_.num_heads, layers::row_grain(query.rows * key_width), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h)
          jobs_[h] = {&weights.w_uk[h],
                      head_inputs_[h].prepare(weights.w_uk[h],
                                              query.columns_from(h * c.qk_head_dim(), key_width),
                                              context_.rounding),
                      absorbed.columns_from(h * c.kv_width(), c.kv_lora_rank)};
      });
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

void MlaAttention::to_values(const model::MlaWeights& weights, Matrix<const float> attended,
                             Matrix<float> heads_out) {
  const auto span = context_.span(TraceOp::kValueProjection, attended.rows);
  const int64_t rank = context_.config.kv_lora_rank, value_width = context_.config.v_head_dim;
  layers::parallel_for(
      shape_.num_heads, layers::row_grain(attended.rows * rank), [&](int64_t begin, int64_t end) {
        for (int64_t h = begin; h < end; ++h)
          jobs_[h] = {
              &weights.w_uv[h],
              head_inputs_[h].prepare(weights.w_uv[h], attended.columns_from(h * rank, rank),
                                      context_.rounding),
              heads_out.columns_from(h * value_width, value_width)};
      });
  layers::grouped_linear(jobs_, context_.rounding);
}

}  // namespace troupe::actors
