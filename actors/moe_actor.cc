#include "actors/moe_actor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "actors/attention_actor.h"
#include "layers/linear.h"
#include "layers/swiglu.h"
#include "layers/team.h"
#include "layers/topk_gate.h"

namespace troupe::actors {

using layers::Rounding;

namespace {

// Rows of experts computed together: all of a decode step's, so that the team shares out few large
// lists of tiles; of a prompt's an expert or two, which stay in cache.
constexpr int kExpertRows = 128;

comm::MoeExchangeShape exchange_shape(const RankContext& context, RowFormat result_format) {
  const size_t hidden = context.config.hidden_size;
  const int64_t union_rows =
      static_cast<int64_t>(context.max_rows) * context.layout.sizes().moe_tp_size;
  return {.num_experts = context.config.n_routed_experts,
          .topk = context.config.gate.topk,
          .row_bytes = hidden * element_bytes(context.row_format()),
          .result_bytes = hidden * element_bytes(result_format),
          .max_tokens = std::min<int64_t>(context.moe_chunk_max_len, union_rows)};
}

// Ids travel as the bits of fp32 rows, which are copied and never computed with.
Matrix<const float> as_bits(Matrix<const int32_t> ids) {
  return {reinterpret_cast<const float*>(ids.data), ids.rows, ids.cols, ids.stride};
}

}  // namespace

MoeActor::MoeActor(Mailbox& mailbox, const RankContext& context)
    : Actor(mailbox, msg::ActorKind::Moe),
      context_(context),
      dense_rows_(context.groups->dense_tp),
      shared_rows_(context.groups->shared_tp),
      moe_tp_rows_(context.groups->moe_tp),
      moe_tp_ids_(context.groups->moe_tp),
      moe_tp_results_(context.groups->moe_tp),
      // Parts of an expert's row meet in fp32; a whole one is rounded by the expert.
      result_format_(moe_tp_rows_.size() > 1 ? RowFormat::kF32 : context.row_format()) {
  const model::ModelConfig& c = context_.config;
  const auto rows = [&](int64_t count, int64_t cols) {
    return context_.workspace.allocate(count, cols);
  };
  const int widest_group = std::max({1, dense_rows_.size(), shared_rows_.size()});
  const int64_t group_rows =
      std::max<int64_t>(kExpertRows, static_cast<int64_t>(context_.max_rows) * widest_group);
  const int64_t widest =
      std::max({c.intermediate_size, c.moe_intermediate_size, c.shared_intermediate_size()});
  gate_up_ = rows(group_rows, 2 * widest);
  activated_ = rows(group_rows, widest);
  mlp_partial_ = rows(group_rows, c.hidden_size);
  mlp_out_ = rows(context_.max_rows, c.hidden_size);
  if (c.n_routed_experts == 0) return;

  exchange_.emplace(context_.groups->expert_parallel, exchange_shape(context_, result_format_));
  round_rows_ = exchange_->max_tokens() / moe_tp_rows_.size();
  if (round_rows_ == 0)
    throw_user_error(
        "runtime_config.comm_buffer_mb is too small: one token of each of {} moe_tp ranks "
        "must fit a window slot; NEEDED about {} times as much",
        moe_tp_rows_.size(),
        (moe_tp_rows_.size() + exchange_->max_tokens() - 1) / exchange_->max_tokens());
  const int64_t union_rows = round_rows_ * moe_tp_rows_.size();
  gate_logits_ = rows(context_.max_rows, c.n_routed_experts);
  topk_ids_ = rows(context_.max_rows, c.gate.topk);
  topk_weights_ = rows(context_.max_rows, c.gate.topk);
  expert_in_ = rows(kExpertRows, c.hidden_size);
  expert_out_ = rows(kExpertRows, c.hidden_size);
  expert_arrivals_.reserve(kExpertRows);
  gate_up_jobs_.reserve(kExpertRows);
  down_jobs_.reserve(kExpertRows);
  union_results_ = rows(union_rows * c.gate.topk, c.hidden_size);
  own_results_ = rows(round_rows_ * c.gate.topk, c.hidden_size);
  if (context_.bf16()) payload_.resize(union_rows * c.hidden_size);
  expert_order_.resize(c.gate.topk);
  round_rows_of_.resize(context_.communicator.world_size());
  round_results_of_.resize(context_.communicator.world_size());
}

void MoeActor::on(const msg::StepPlan& plan) {
  observe_router_ = (plan.observe() & static_cast<uint8_t>(msg::Observe::Router)) != 0;
}

void MoeActor::on(const msg::FeedForward& message) {
  const int layer = message.layer();
  const model::LayerWeights& weights =
      layer == context_.mtp_layer() ? context_.weights.mtp->layer : context_.weights.layers[layer];
  const Matrix<int32_t> world_rows = context_.workspace.ints(*message.world_rows());
  const std::span<const int32_t> rows(world_rows.data, static_cast<size_t>(world_rows.rows));
  if (weights.moe) {
    shared_rows_.set_rows(rows);
    run_moe(message, *weights.moe);
  } else {
    dense_rows_.set_rows(rows);
    const Matrix<float> hidden = context_.workspace.floats(*message.hidden());
    const Matrix<float> out = context_.workspace.floats(first_rows(mlp_out_, hidden.rows));
    run_mlp(*weights.dense, dense_rows_, context_.workspace.floats(*message.normed()), out);
    add_rows(hidden, out, context_.rounding);
  }
  send(neighbour(msg::ActorKind::Attention), msg::CreateFeedForwardDone(builder(), layer));
}

void MoeActor::mlp_part(const model::MlpWeights& weights, Matrix<const float> x, Matrix<float> y) {
  const int64_t width = weights.down.cols;
  const Workspace& workspace = context_.workspace;
  const Matrix<float> gate_up(workspace.floats(gate_up_).data, x.rows, 2 * width);
  const Matrix<float> activated(workspace.floats(activated_).data, x.rows, width);
  // gate and up stay in fp32 until their product: gate_up and SwiGLU count as one operation.
  layers::linear(weights.gate_up, x, gate_up, Rounding::kNone);
  layers::swiglu(gate_up, activated, context_.rounding);
  layers::linear(weights.down, activated, y, Rounding::kNone);
}

void MoeActor::run_mlp(const model::MlpWeights& weights, RowExchange& group, Matrix<const float> x,
                       Matrix<float> y) {
  const Matrix<const float> all = group.gather(x, context_.row_format());
  const Matrix<float> partial = context_.workspace.floats(first_rows(mlp_partial_, all.rows));
  mlp_part(weights, all, partial);
  group.scatter_sum(partial, y, context_.rounding);
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

int64_t MoeActor::max_own_rows(const msg::FeedForward& message) const {
  if (!context_.layout.uses_tensor_parallelism()) return message.max_rows();
  const Matrix<int32_t> rows = context_.workspace.ints(*message.world_rows());
  return *std::max_element(rows.data, rows.data + rows.rows);
}

void MoeActor::run_moe(const msg::FeedForward& message, const model::MoeWeights& weights) {
  const Matrix<float> normed = context_.workspace.floats(*message.normed());
  const Matrix<float> hidden = context_.workspace.floats(*message.hidden());
  const Matrix<int32_t> world_rows = context_.workspace.ints(*message.world_rows());
  route(weights, message.layer(), normed);
  run_shared_expert(weights, normed);
  const int64_t max_rows = max_own_rows(message);
  for (int64_t first = 0; first < max_rows; first += round_rows_) {
    for (int64_t r = 0; r < world_rows.rows; ++r) {
      round_rows_of_[r] =
          static_cast<int32_t>(std::clamp<int64_t>(world_rows.row(r)[0] - first, 0, round_rows_));
      round_results_of_[r] = round_rows_of_[r] * context_.config.gate.topk;
    }
    moe_tp_rows_.set_rows(round_rows_of_);
    moe_tp_ids_.set_rows(round_rows_of_);
    moe_tp_results_.set_rows(round_results_of_);
    run_round(weights, normed, hidden, std::min(first, normed.rows), moe_tp_rows_.own_rows());
  }
}

// A shared expert that is whole on every rank is computed while rows travel (run_round); one that
// is cut needs the windows itself, so it comes first, for all rows.
void MoeActor::run_shared_expert(const model::MoeWeights& weights, Matrix<const float> rows) {
  if (!weights.shared || shared_rows_.size() == 1) return;
  run_mlp(*weights.shared, shared_rows_, rows,
          context_.workspace.floats(first_rows(mlp_out_, rows.rows)));
}

void MoeActor::start_dispatch(Matrix<const float> rows, Matrix<const int32_t> ids) {
  const std::byte* payload = reinterpret_cast<const std::byte*>(rows.data);
  int64_t stride = rows.stride * static_cast<int64_t>(sizeof(float));
  if (context_.bf16()) {
    stride = rows.cols * static_cast<int64_t>(sizeof(Bf16));
    payload = reinterpret_cast<const std::byte*>(payload_.data());
    for (int64_t r = 0; r < rows.rows; ++r)
      pack_row({rows.row(r), static_cast<size_t>(rows.cols)}, RowFormat::kBf16,
               reinterpret_cast<std::byte*>(payload_.data() + r * rows.cols));
  }
  exchange_->start_dispatch(payload, stride, rows.rows,
                            {ids.data, static_cast<size_t>(ids.rows * ids.cols)});
}

void MoeActor::run_round(const model::MoeWeights& weights, Matrix<const float> normed,
                         Matrix<float> hidden, int64_t first, int64_t count) {
  const Matrix<const float> own = Matrix<const float>(normed).rows_from(first, count);
  const Matrix<const int32_t> own_ids =
      Matrix<const int32_t>(context_.workspace.ints(topk_ids_)).rows_from(first, count);
  Matrix<const float> rows = own;
  Matrix<const int32_t> ids = own_ids;
  if (moe_tp_rows_.size() > 1) {
    rows = moe_tp_rows_.gather(own, context_.row_format());
    const auto bits = moe_tp_ids_.gather(as_bits(own_ids), RowFormat::kF32);
    ids = {reinterpret_cast<const int32_t*>(bits.data), bits.rows, bits.cols};
  }
  start_dispatch(rows, ids);
  const Matrix<float> shared(context_.workspace.floats(mlp_out_).rows_from(first, count));
  if (weights.shared && shared_rows_.size() == 1) {
    const Matrix<float> partial = context_.workspace.floats(first_rows(mlp_partial_, count));
    mlp_part(*weights.shared, own, partial);
    round_rows(partial, shared, context_.rounding);
  }
  exchange_->finish_dispatch();
  for (int e = 0; e < exchange_->num_local_experts(); ++e)
    add_expert_rows(weights.experts[e], exchange_->arrivals(e));
  run_expert_rows();
  exchange_->start_combine();
  exchange_->finish_combine();
  const Matrix<const float> results = collect_results(rows.rows, count);
  add_results(results, weights.shared ? shared : Matrix<float>(), hidden, first);
}

void MoeActor::add_expert_rows(const model::MlpWeights& weights,
                               std::span<const comm::MoeExchange::Arrival> rows) {
  const Workspace& workspace = context_.workspace;
  const int64_t width = weights.down.cols;
  const Matrix<float> gate_up(workspace.floats(gate_up_).data, kExpertRows, 2 * width);
  const Matrix<float> activated(workspace.floats(activated_).data, kExpertRows, width);
  while (!rows.empty()) {
    // An expert that does not fit waits for the next turn, whole if it can.
    const size_t used = expert_arrivals_.size();
    if (used > 0 && used + rows.size() > kExpertRows) {
      run_expert_rows();
      continue;
    }
    const auto taken = rows.first(std::min<size_t>(rows.size(), kExpertRows));
    const auto first = static_cast<int64_t>(used), count = static_cast<int64_t>(taken.size());
    expert_arrivals_.insert(expert_arrivals_.end(), taken.begin(), taken.end());
    gate_up_jobs_.push_back({&weights.gate_up, workspace.floats(expert_in_).rows_from(first, count),
                             gate_up.rows_from(first, count)});
    down_jobs_.push_back({&weights.down, activated.rows_from(first, count),
                          workspace.floats(expert_out_).rows_from(first, count)});
    rows = rows.subspan(taken.size());
  }
}

void MoeActor::run_expert_rows() {
  if (expert_arrivals_.empty()) return;
  const auto count = static_cast<int64_t>(expert_arrivals_.size());
  const auto hidden_size = static_cast<size_t>(context_.config.hidden_size);
  const Matrix<float> in = context_.workspace.floats(first_rows(expert_in_, count));
  const Matrix<float> out = context_.workspace.floats(first_rows(expert_out_, count));
  const int64_t width = down_jobs_[0].x.cols;
  const Matrix<float> gate_up(gate_up_jobs_[0].y.data, count, 2 * width);
  const Matrix<float> activated(context_.workspace.floats(activated_).data, count, width);
  const int64_t grain = layers::row_grain(in.cols);
  layers::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      unpack_row(expert_arrivals_[r].row, context_.row_format(), {in.row(r), hidden_size});
  });
  layers::grouped_linear(gate_up_jobs_, Rounding::kNone);
  layers::swiglu(gate_up, activated, context_.rounding);
  layers::grouped_linear(down_jobs_, Rounding::kNone);
  layers::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      pack_row({out.row(r), hidden_size}, result_format_,
               exchange_->result_row(expert_arrivals_[r]));
  });
  expert_arrivals_.clear();
  gate_up_jobs_.clear();
  down_jobs_.clear();
}

Matrix<const float> MoeActor::collect_results(int64_t union_rows, int64_t count) {
  const int topk = context_.config.gate.topk;
  const auto hidden_size = static_cast<size_t>(context_.config.hidden_size);
  const Matrix<float> all =
      context_.workspace.floats(first_rows(union_results_, union_rows * topk));
  for (int64_t t = 0; t < union_rows; ++t)
    for (int j = 0; j < topk; ++j)
      unpack_row(exchange_->result(t, j), result_format_, {all.row(t * topk + j), hidden_size});
  exchange_->release();
  if (moe_tp_rows_.size() == 1) return all;
  const Matrix<float> own = context_.workspace.floats(first_rows(own_results_, count * topk));
  moe_tp_results_.scatter_sum(all, own, context_.rounding);
  return own;
}

// hidden += sum over the token's experts in ascending id of weight * result, + shared, in fp32 with
// one rounding: the order does not depend on which rank computed what.
void MoeActor::add_results(Matrix<const float> results, Matrix<const float> shared,
                           Matrix<float> hidden, int64_t first) {
  const int topk = context_.config.gate.topk;
  const Matrix<int32_t> ids = context_.workspace.ints(topk_ids_);
  const Matrix<float> scores = context_.workspace.floats(topk_weights_);
  const Matrix<float> sum = context_.workspace.floats(first_rows(expert_out_, 1));
  for (int64_t t = 0; t < results.rows / topk; ++t) {
    const int32_t* experts = ids.row(first + t);
    std::iota(expert_order_.begin(), expert_order_.end(), 0);
    std::ranges::sort(expert_order_, {}, [&](int j) { return experts[j]; });
    std::fill_n(sum.data, sum.cols, 0.0f);
    for (const int j : expert_order_) {
      const float* result = results.row(t * topk + j);
      const float weight = scores.row(first + t)[j];
      for (int64_t i = 0; i < sum.cols; ++i) sum.data[i] += weight * result[i];
    }
    if (shared.data != nullptr)
      for (int64_t i = 0; i < sum.cols; ++i) sum.data[i] += shared.row(t)[i];
    round_rows(sum, sum, context_.rounding);
    add_rows(hidden.rows_from(first + t, 1), sum, context_.rounding);
  }
}

}  // namespace troupe::actors
