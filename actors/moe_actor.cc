#include "actors/moe_actor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "actors/attention_actor.h"
#include "layers/linear.h"
#include "layers/swiglu.h"
#include "layers/topk_gate.h"

namespace troupe::actors {

using layers::Rounding;

namespace {

constexpr int kExpertRows = 64;  // enough to reuse a weight tile from cache; bounds the scratch

comm::MoeExchangeShape exchange_shape(const RankContext& context) {
  const size_t row_bytes =
      context.config.hidden_size * (context.bf16() ? sizeof(Bf16) : sizeof(float));
  return {.num_experts = context.config.n_routed_experts,
          .topk = context.config.gate.topk,
          .row_bytes = row_bytes,
          .result_bytes = row_bytes,
          .max_tokens = std::min<int64_t>(context.moe_chunk_max_len, context.max_rows)};
}

// A row as it travels (fp32, or bf16 whose values were rounded before) and as kernels read it.
void unpack_row(const std::byte* from, bool bf16, std::span<float> to) {
  if (!bf16) {
    std::memcpy(to.data(), from, to.size_bytes());
  } else {
    const auto* in = reinterpret_cast<const Bf16*>(from);
    for (size_t i = 0; i < to.size(); ++i) to[i] = to_float(in[i]);
  }
}

void pack_row(std::span<const float> from, bool bf16, std::byte* to) {
  if (!bf16) {
    std::memcpy(to, from.data(), from.size_bytes());
  } else {
    auto* out = reinterpret_cast<Bf16*>(to);
    for (size_t i = 0; i < from.size(); ++i) out[i] = to_bf16(from[i]);
  }
}

}  // namespace

MoeActor::MoeActor(Mailbox& mailbox, const RankContext& context, comm::ProcessGroup& expert_parallel)
    : Actor(mailbox, msg::ActorKind::Moe),
      context_(context),
      expert_rows_(std::min(kExpertRows, context.max_rows)) {
  const model::ModelConfig& c = context_.config;
  if (c.n_routed_experts > 0) exchange_.emplace(expert_parallel, exchange_shape(context));
  const auto rows = [&](int64_t count, int64_t cols) {
    return context_.workspace.allocate(count, cols);
  };
  const int64_t widest =
      std::max({c.intermediate_size, c.moe_intermediate_size, c.shared_intermediate_size()});
  gate_logits_ = rows(context_.max_rows, c.n_routed_experts);
  topk_ids_ = rows(context_.max_rows, c.gate.topk);
  topk_weights_ = rows(context_.max_rows, c.gate.topk);
  gate_up_ = rows(context_.max_rows, 2 * widest);
  activated_ = rows(context_.max_rows, widest);
  mlp_out_ = rows(context_.max_rows, c.hidden_size);
  expert_in_ = rows(expert_rows_, c.hidden_size);
  expert_out_ = rows(expert_rows_, c.hidden_size);
  if (context_.bf16() && exchange_) payload_.resize(exchange_->max_tokens() * c.hidden_size);
  expert_order_.resize(c.gate.topk);
}

void MoeActor::on(const msg::StepPlan& plan) {
  observe_router_ = (plan.observe() & static_cast<uint8_t>(msg::Observe::Router)) != 0;
}

void MoeActor::on(const msg::FeedForward& message) {
  const int layer = message.layer();
  const model::LayerWeights& weights = layer == context_.mtp_layer()
                                           ? context_.weights.mtp->layer
                                           : context_.weights.layers[layer];
  if (weights.moe)
    run_moe(message);
  else
    run_dense(*weights.dense, context_.workspace.floats(*message.normed()),
              context_.workspace.floats(*message.hidden()));
  send(neighbour(msg::ActorKind::Attention), msg::CreateFeedForwardDone(builder(), layer));
}

void MoeActor::mlp(const model::MlpWeights& weights, Matrix<const float> x, Matrix<float> y) {
  const int64_t width = weights.down.cols;
  const Workspace& workspace = context_.workspace;
  const Matrix<float> gate_up(workspace.floats(gate_up_).data, x.rows, 2 * width);
  const Matrix<float> activated(workspace.floats(activated_).data, x.rows, width);
  // gate and up stay in fp32 until their product: gate_up and SwiGLU count as one operation.
  layers::linear(weights.gate_up, x, gate_up, Rounding::kNone);
  layers::swiglu(gate_up, activated, context_.rounding);
  layers::linear(weights.down, activated, y, context_.rounding);
}

void MoeActor::run_dense(const model::MlpWeights& weights, Matrix<const float> normed,
                         Matrix<float> hidden) {
  const Matrix<float> out = context_.workspace.floats(first_rows(mlp_out_, normed.rows));
  mlp(weights, normed, out);
  add_rows(hidden, out, context_.rounding);
}

void MoeActor::route(const model::MoeWeights& weights, int layer, Matrix<const float> normed) {
  const Workspace& workspace = context_.workspace;
  const Matrix<float> logits = workspace.floats(first_rows(gate_logits_, normed.rows));
  const Matrix<int32_t> ids = workspace.ints(first_rows(topk_ids_, normed.rows));
  const Matrix<float> scores = workspace.floats(first_rows(topk_weights_, normed.rows));
  layers::linear(weights.gate, normed, logits, Rounding::kNone);
  layers::topk_gate(context_.config.gate, logits, weights.gate_bias, ids, scores);
  if (observe_router_) {
    const size_t bytes = ids.rows * ids.cols * sizeof(float);
    std::memcpy(context_.observation.router_ids(layer).data, ids.data, bytes);
    std::memcpy(context_.observation.router_weights(layer).data, scores.data, bytes);
  }
}

void MoeActor::run_moe(const msg::FeedForward& message) {
  const model::MoeWeights& weights = message.layer() == context_.mtp_layer()
                                         ? *context_.weights.mtp->layer.moe
                                         : *context_.weights.layers[message.layer()].moe;
  const Matrix<float> normed = context_.workspace.floats(*message.normed());
  const Matrix<float> hidden = context_.workspace.floats(*message.hidden());
  route(weights, message.layer(), normed);
  const int64_t per_round = exchange_->max_tokens();
  for (int64_t first = 0; first < message.max_rows(); first += per_round) {
    const int64_t begin = std::min(first, normed.rows);
    run_round(weights, normed, hidden, begin, std::min(per_round, normed.rows - begin));
  }
}

void MoeActor::run_round(const model::MoeWeights& weights, Matrix<const float> normed,
                         Matrix<float> hidden, int64_t first, int64_t count) {
  const Matrix<const float> rows = normed.rows_from(first, count);
  const Matrix<int32_t> ids =
      context_.workspace.ints(topk_ids_).rows_from(first, count);
  const std::byte* payload = reinterpret_cast<const std::byte*>(rows.data);
  int64_t stride = rows.stride * static_cast<int64_t>(sizeof(float));
  if (context_.bf16()) {
    stride = rows.cols * static_cast<int64_t>(sizeof(Bf16));
    payload = reinterpret_cast<const std::byte*>(payload_.data());
    for (int64_t r = 0; r < count; ++r)
      pack_row({rows.row(r), static_cast<size_t>(rows.cols)}, true,
               reinterpret_cast<std::byte*>(payload_.data() + r * rows.cols));
  }
  exchange_->start_dispatch(payload, stride, count,
                           {ids.data, static_cast<size_t>(count * ids.cols)});

  // The shared expert is computed while rows travel.
  const Matrix<float> shared = context_.workspace.floats(first_rows(mlp_out_, count));
  if (weights.shared) mlp(*weights.shared, rows, shared);

  exchange_->finish_dispatch();
  for (int e = 0; e < exchange_->num_local_experts(); ++e)
    run_expert(weights.experts[e], exchange_->arrivals(e));
  exchange_->start_combine();
  exchange_->finish_combine();
  add_results(hidden, weights.shared ? shared : Matrix<float>(), first, count);
  exchange_->release();
}

void MoeActor::run_expert(const model::MlpWeights& weights,
                          std::span<const comm::MoeExchange::Arrival> rows) {
  const size_t hidden_size = context_.config.hidden_size;
  for (size_t first = 0; first < rows.size(); first += expert_rows_) {
    const auto block = rows.subspan(first, std::min<size_t>(expert_rows_, rows.size() - first));
    const auto count = static_cast<int64_t>(block.size());
    const Matrix<float> in = context_.workspace.floats(first_rows(expert_in_, count));
    const Matrix<float> out = context_.workspace.floats(first_rows(expert_out_, count));
    for (int64_t r = 0; r < count; ++r)
      unpack_row(block[r].row, context_.bf16(), {in.row(r), hidden_size});
    mlp(weights, in, out);
    for (int64_t r = 0; r < count; ++r)
      pack_row({out.row(r), hidden_size}, context_.bf16(), exchange_->result_row(block[r]));
  }
}

// hidden += sum over the token's experts in ascending id of weight * result, + shared, in fp32 with
// one rounding: the order does not depend on which rank computed what.
void MoeActor::add_results(Matrix<float> hidden, Matrix<const float> shared, int64_t first,
                           int64_t count) {
  const Matrix<int32_t> ids = context_.workspace.ints(topk_ids_);
  const Matrix<float> scores = context_.workspace.floats(topk_weights_);
  const Matrix<float> row = context_.workspace.floats(first_rows(expert_in_, 1));
  const Matrix<float> sum = context_.workspace.floats(first_rows(expert_out_, 1));
  for (int64_t t = 0; t < count; ++t) {
    const int32_t* experts = ids.row(first + t);
    std::iota(expert_order_.begin(), expert_order_.end(), 0);
    std::ranges::sort(expert_order_, {}, [&](int j) { return experts[j]; });
    std::fill_n(sum.data, sum.cols, 0.0f);
    for (const int j : expert_order_) {
      unpack_row(exchange_->result(t, j), context_.bf16(),
                 {row.data, static_cast<size_t>(row.cols)});
      const float weight = scores.row(first + t)[j];
      for (int64_t i = 0; i < sum.cols; ++i) sum.data[i] += weight * row.data[i];
    }
    if (shared.data != nullptr)
      for (int64_t i = 0; i < sum.cols; ++i) sum.data[i] += shared.row(t)[i];
    if (context_.bf16())
      for (int64_t i = 0; i < sum.cols; ++i) sum.data[i] = round_to_bf16(sum.data[i]);
    add_rows(hidden.rows_from(first + t, 1), sum, context_.rounding);
  }
}

}  // namespace troupe::actors
