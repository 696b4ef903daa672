#include "actors/gqa_attention.h"

#include <algorithm>
#include <cstring>

#include "layers/bias.h"
#include "layers/linear.h"
#include "layers/rms_norm.h"

namespace troupe::actors {

using comm::TraceOp;
using layers::Rounding;

GqaAttention::GqaAttention(const RankContext& context) : context_(context), rotary_(context) {
  const model::ModelConfig& c = context_.config;
  const int rank = context_.communicator.world_rank();
  const model::Range heads = context_.layout.heads(rank), kv = context_.layout.kv_heads(rank);
  const int heads_per_kv = c.num_attention_heads / c.num_key_value_heads;
  shape_ = {.num_heads = static_cast<int>(heads.size()),
            .num_kv_heads = static_cast<int>(kv.size()),
            .heads_per_kv = heads_per_kv,
            .first_head = static_cast<int>(heads.begin % heads_per_kv),
            .head_dim = static_cast<int>(c.qk_head_dim()),
            .softmax_scale = c.softmax_scale()};
  const int64_t width = heads.size() * c.qk_head_dim();
  qkv_ = context_.workspace.allocate(context_.max_rows, width + 2 * kv.size() * c.qk_head_dim());
  cache_row_ = context_.workspace.allocate(1, context_.kv_cache.shape().width);
  heads_out_ = context_.workspace.allocate(context_.max_rows, width);
  scales_.resize(context_.kv_cache.shape().num_scales());
  window_queries_.reserve(context_.max_rows);
  for (int layer = 0; layer < c.num_hidden_layers; ++layer) slots_.push_back(c.kv_slot(layer));
}

void GqaAttention::begin_forward(std::span<const layers::KvQuery> queries,
                                 Matrix<const int32_t> positions) {
  queries_ = queries;
  window_queries_.clear();
  if (context_.config.has_window())
    for (const layers::KvQuery& query : queries)
      window_queries_.push_back({.block_table = query.window_table, .position = query.position});
  rotary_.set_positions(positions);
}

Matrix<float> GqaAttention::attend(int layer, const model::AttentionWeights& weights,
                                   Matrix<const float> normed) {
  const Matrix<float> qkv = project(*weights.gqa, normed);
  const int64_t query_width = int64_t{shape_.num_heads} * shape_.head_dim;
  const int64_t window = context_.config.window_of(layer);
  const auto queries = window > 0 ? std::span<const layers::KvQuery>(window_queries_) : queries_;
  write_keys_and_values(slots_[layer], queries, *weights.gqa,
                        qkv.columns_from(query_width, qkv.cols - query_width));
  const Matrix<float> heads_out = context_.workspace.floats(first_rows(heads_out_, normed.rows));
  const auto span = context_.span(TraceOp::kAttend, normed.rows);
  layers::gqa_attention(shape_, context_.kv_cache, slots_[layer], window, weights.gqa->sinks,
                        queries, qkv.columns_from(0, query_width), heads_out);
  round_rows(heads_out, heads_out, context_.rounding);
  return heads_out;
}

Matrix<float> GqaAttention::project(const model::GqaWeights& weights, Matrix<const float> normed) {
  const auto span = context_.span(TraceOp::kQueryProjection, normed.rows);
  const Matrix<float> qkv = context_.workspace.floats(first_rows(qkv_, normed.rows));
  const layers::PreparedRows inputs = inputs_.prepare(weights.qkv, normed, context_.rounding);
  if (weights.qkv_bias.empty()) {
    layers::linear(weights.qkv, inputs, qkv, context_.rounding);
  } else {
    layers::linear(weights.qkv, inputs, qkv, Rounding::kNone);
    layers::add_bias(qkv, weights.qkv_bias, context_.rounding);
  }
  // Keys follow the queries: both are heads of the same width.
  const int query_heads = shape_.num_heads, heads = query_heads + shape_.num_kv_heads;
  const int64_t head_dim = shape_.head_dim;
  if (!weights.q_norm.empty()) {
    norm_heads(weights.q_norm, qkv.columns_from(0, query_heads * head_dim));
    norm_heads(weights.k_norm,
               qkv.columns_from(query_heads * head_dim, shape_.num_kv_heads * head_dim));
  }
  rotary_.rotate(qkv.columns_from(0, heads * head_dim), heads, head_dim);
  return qkv;
}

void GqaAttention::norm_heads(std::span<const float> weight, Matrix<float> heads) {
  for (int64_t first = 0; first < heads.cols; first += shape_.head_dim) {
    const Matrix<float> head = heads.columns_from(first, shape_.head_dim);
    layers::rms_norm(head, weight, context_.config.rms_norm_eps, head, context_.rounding);
  }
}

// All ranks have rows of one width; a rank with fewer kv heads than another leaves its rows' ends.
void GqaAttention::write_keys_and_values(int slot, std::span<const layers::KvQuery> queries,
                                         const model::GqaWeights& weights,
                                         Matrix<const float> keys_and_values) {
  const auto span = context_.span(TraceOp::kKvProjection, keys_and_values.rows);
  std::span<const float> scales;
  if (!weights.k_scale.empty() && !scales_.empty()) {
    std::fill(scales_.begin(), scales_.end(), weights.k_scale[0]);
    std::fill_n(scales_.begin() + shape_.num_kv_heads, shape_.num_kv_heads, weights.v_scale[0]);
    scales = scales_;
  }
  const Matrix<float> row = context_.workspace.floats(cache_row_);
  for (int64_t r = 0; r < keys_and_values.rows; ++r) {
    std::memcpy(row.data, keys_and_values.row(r), keys_and_values.cols * sizeof(float));
    context_.kv_cache.write(slot, queries[r].block_table, queries[r].position,
                            {row.data, static_cast<size_t>(row.cols)}, scales);
  }
}

}  // namespace troupe::actors
