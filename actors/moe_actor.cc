#include "actors/moe_actor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "actors/attention_actor.h"
#include "comm/double_routing.h"
#include "comm/fused_exchange.h"
#include "layers/bias.h"
#include "layers/linear.h"
#include "layers/swiglu.h"
#include "layers/team.h"
#include "layers/topk_gate.h"

namespace troupe::actors {

using comm::TraceOp;
using layers::Rounding;

namespace {

std::unique_ptr<comm::MoeExchange> make_exchange(comm::ProcessGroup& group, bool double_routing,
                                                 const comm::MoeExchangeShape& shape) {
  if (double_routing) return std::make_unique<comm::DoubleRouting>(group, shape);
  return std::make_unique<comm::FusedExchange>(group, shape);
}

// What is added to a token's row: `weight` times a row as it travelled.
struct Term {
  const std::byte* row;
  RowFormat format;
  float weight;
};

constexpr int64_t kSumColumns = 512;

// sum[i] = the sum of all terms at column first + i, in their order. term(0) to term(count - 1).
template <class TermAt>
void sum_answers(int count, const TermAt& term, int64_t first, std::span<float> sum) {
  float part[kSumColumns];
  for (size_t begin = 0; begin < sum.size(); begin += kSumColumns) {
    const std::span<float> columns =
        sum.subspan(begin, std::min<size_t>(kSumColumns, sum.size() - begin));
    std::ranges::fill(columns, 0.0f);
    for (int t = 0; t < count; ++t) {
      const Term& from = term(t);
      const size_t offset = (static_cast<size_t>(first) + begin) * element_bytes(from.format);
      unpack_row(from.row + offset, from.format, std::span(part).first(columns.size()));
      for (size_t i = 0; i < columns.size(); ++i) columns[i] += from.weight * part[i];
    }
  }
}

// Ids travel as the bits of fp32 rows, which are copied and never computed with.
Matrix<const float> as_bits(Matrix<const int32_t> ids) {
  return {reinterpret_cast<const float*>(ids.data), ids.rows, ids.cols, ids.stride};
}
Matrix<const int32_t> as_ids(Matrix<const float> bits) {
  return {reinterpret_cast<const int32_t*>(bits.data), bits.rows, bits.cols, bits.stride};
}

}  // namespace

MoeActor::MoeActor(Mailbox& mailbox, const RankContext& context)
    : Actor(mailbox, msg::ActorKind::Moe),
      context_(context),
      dense_rows_(context.groups->dense_tp),
      shared_rows_(context.groups->shared_tp),
      moe_tp_rows_(context.groups->moe_tp),
      moe_tp_ids_(context.groups->moe_tp),
      moe_tp_weights_(context.groups->moe_tp),
      moe_tp_results_(context.groups->moe_tp),
      answer_(context.moe.deterministic || context.moe.double_routing ? comm::Answer::kPerExpert
                                                                      : comm::Answer::kPerRank),
      payload_format_(context.moe.int8_payload ? PayloadFormat::kInt8
                      : context.bf16()         ? PayloadFormat::kBf16
                                               : PayloadFormat::kF32),
      // Parts of an expert's row meet in fp32; a whole one is rounded by the expert.
      result_format_(moe_tp_rows_.size() > 1 ? RowFormat::kF32 : context.row_format()),
      copies_(context.layout, context.config) {
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

  allocate_for_experts();
}

void MoeActor::allocate_for_experts() {
  const model::ModelConfig& c = context_.config;
  const model::ParallelLayout& layout = context_.layout;
  const auto rows = [&](int64_t count, int64_t cols) {
    return context_.workspace.allocate(count, cols);
  };
  const int moe_tp = moe_tp_rows_.size(), ep = context_.groups->expert_parallel.size();
  chunk_rows_ = std::min<int64_t>(context_.moe.chunk_max_len, context_.max_rows);
  const int64_t union_rows = chunk_rows_ * moe_tp;
  const size_t packed = payload_bytes(payload_format_, c.hidden_size);
  exchange_ = make_exchange(context_.groups->expert_parallel, context_.moe.double_routing,
                            {.num_experts = static_cast<int>(layout.num_physical_experts()),
                             .topk = c.gate.topk,
                             .row_bytes = packed,
                             .result_bytes = c.hidden_size * element_bytes(result_format_),
                             .max_tokens = union_rows,
                             .answer = answer_});
  answer_rows_ = per_rank() ? 1 : c.gate.topk;
  gate_logits_ = rows(context_.max_rows, c.n_routed_experts);
  topk_ids_ = rows(context_.max_rows, c.gate.topk);
  topk_weights_ = rows(context_.max_rows, c.gate.topk);
  expert_order_ = rows(context_.max_rows, c.gate.topk);
  expert_in_ = rows(kExpertRows, c.hidden_size);
  expert_out_ = rows(kExpertRows, c.hidden_size);
  expert_arrivals_.reserve(kExpertRows);
  gate_up_jobs_.reserve(kExpertRows);
  gate_up_biases_.reserve(kExpertRows);
  down_jobs_.reserve(kExpertRows);
  physical_ids_ = rows(union_rows, c.gate.topk);
  if (moe_tp_rows_.group().rank() == 0)
    for (const int layer : model::moe_layers(c))
      if (layer < context_.mtp_layer() || context_.weights.mtp)
        expert_load_[layer].resize(exchange_->num_local_experts());
  payload_ = rows(union_rows, static_cast<int64_t>(packed / sizeof(float)));
  if (per_rank()) partial_sums_ = rows(union_rows * ep, c.hidden_size);
  if (moe_tp > 1) {
    union_answers_ = rows(union_rows * answer_rows_, c.hidden_size);
    own_answers_ = rows(chunk_rows_ * answer_rows_, c.hidden_size);
  }
  chunk_rows_of_.resize(context_.communicator.world_size());
  answer_rows_of_.resize(context_.communicator.world_size());
}

void MoeActor::on(const msg::StepPlan& plan) {
  step_ = static_cast<int64_t>(plan.step());
  observe_router_ = (plan.observe() & static_cast<uint8_t>(msg::Observe::Router)) != 0;
}

void MoeActor::on(const msg::FeedForward& message) {
  const int layer = message.layer();
  const auto span = context_.span(TraceOp::kFeedForward, message.hidden()->rows());
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
  tell(neighbour(msg::ActorKind::Attention),
       [&](auto& b) { return msg::CreateFeedForwardDone(b, layer); });
}

void MoeActor::mlp_part(const model::MlpWeights& weights, Matrix<const float> x, Matrix<float> y) {
  const int64_t width = weights.down.cols;
  const Workspace& workspace = context_.workspace;
  const Matrix<float> gate_up(workspace.floats(gate_up_).data, x.rows, 2 * width);
  const Matrix<float> activated(workspace.floats(activated_).data, x.rows, width);
  // gate and up stay in fp32 until their product: gate_up and SwiGLU count as one operation.
  layers::linear(weights.gate_up, inputs_.prepare(weights.gate_up, x, context_.rounding), gate_up,
                 Rounding::kNone);
  if (!weights.gate_up_bias.empty())
    layers::add_bias(gate_up, weights.gate_up_bias, Rounding::kNone);
  layers::linear(weights.down, activate(weights.down, gate_up, activated), y, Rounding::kNone);
}

layers::PreparedRows MoeActor::activate(const model::PackedMatrix& down,
                                        Matrix<const float> gate_up, Matrix<float> rows) {
  return inputs_.prepare(down, rows, context_.rounding, [&](int64_t r, Matrix<float> row) {
    swiglu(gate_up.rows_from(r, 1), row);
  });
}

void MoeActor::swiglu(Matrix<const float> gate_up, Matrix<float> out) const {
  if (context_.config.clamped_swiglu)
    layers::clamped_swiglu(*context_.config.clamped_swiglu, gate_up, out, context_.rounding);
  else
    layers::swiglu(gate_up, out, context_.rounding);
}

void MoeActor::run_mlp(const model::MlpWeights& weights, RowExchange& group, Matrix<const float> x,
                       Matrix<float> y) {
  const auto span = context_.span(TraceOp::kMlp, x.rows);
  const Matrix<const float> all = group.gather(x, context_.row_format());
  const Matrix<float> partial = context_.workspace.floats(first_rows(mlp_partial_, all.rows));
  mlp_part(weights, all, partial);
  group.scatter_sum(partial, y, context_.rounding);
}

void MoeActor::route(const model::MoeWeights& weights, int layer, Matrix<const float> normed) {
  const auto span = context_.span(TraceOp::kGate, normed.rows);
  const Workspace& workspace = context_.workspace;
  const Matrix<float> logits = workspace.floats(first_rows(gate_logits_, normed.rows));
  const Matrix<int32_t> ids = workspace.ints(first_rows(topk_ids_, normed.rows));
  const Matrix<float> scores = workspace.floats(first_rows(topk_weights_, normed.rows));
  layers::linear(weights.gate, inputs_.prepare(weights.gate, normed, context_.rounding), logits,
                 Rounding::kNone);
  if (!weights.router_bias.empty()) layers::add_bias(logits, weights.router_bias, Rounding::kNone);
  layers::topk_gate(context_.config.gate, logits, weights.gate_bias, ids, scores);
  if (context_.moe.force_eplb) force_balance(ids);
  const Matrix<int32_t> order = workspace.ints(first_rows(expert_order_, normed.rows));
  for (int64_t r = 0; r < order.rows; ++r) {
    const std::span<int32_t> row(order.row(r), static_cast<size_t>(order.cols));
    std::iota(row.begin(), row.end(), 0);
    std::ranges::sort(row, {}, [&](int32_t j) { return ids.row(r)[j]; });
  }
  if (observe_router_) {
    const size_t bytes = ids.rows * ids.cols * sizeof(float);
    std::memcpy(context_.observation.router_ids(layer).data, ids.data, bytes);
    std::memcpy(context_.observation.router_weights(layer).data, scores.data, bytes);
  }
}

// Choices are dealt out to the ranks in turn, and on each rank to its experts: where all ranks have
// as many rows, no rank and no expert gets more than one above any other.
void MoeActor::force_balance(Matrix<int32_t> ids) const {
  const int64_t experts = context_.config.n_routed_experts;
  const int64_t ep = context_.groups->expert_parallel.size(), each = experts / ep;
  const comm::Communicator& world = context_.communicator;
  int64_t choice = (step_ * world.world_size() + world.world_rank()) * ids.rows * ids.cols;
  for (int64_t t = 0; t < ids.rows; ++t)
    for (int64_t j = 0; j < ids.cols; ++j, ++choice) {
      const int64_t turn = choice % experts;
      ids.row(t)[j] = static_cast<int32_t>(turn % ep * each + turn / ep);
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
  down_bias_ = weights.down_bias;
  layer_ = message.layer();
  route(weights, message.layer(), normed);
  run_shared_expert(weights, normed);
  const int64_t max_rows = max_own_rows(message);
  for (int64_t first = 0; first < max_rows; first += chunk_rows_) {
    for (int64_t r = 0; r < world_rows.rows; ++r)
      chunk_rows_of_[r] =
          static_cast<int32_t>(std::clamp<int64_t>(world_rows.row(r)[0] - first, 0, chunk_rows_));
    for (RowExchange* rows : {&moe_tp_rows_, &moe_tp_ids_, &moe_tp_weights_})
      rows->set_rows(chunk_rows_of_);
    run_chunk(weights, normed, hidden, std::min(first, normed.rows), moe_tp_rows_.own_rows());
  }
}

// A shared expert that is whole on every rank is computed while rows travel (run_chunk); one that
// is cut needs the windows itself, so it comes first, for all rows.
void MoeActor::run_shared_expert(const model::MoeWeights& weights, Matrix<const float> rows) {
  if (!weights.shared || shared_rows_.size() == 1) return;
  run_mlp(*weights.shared, shared_rows_, rows,
          context_.workspace.floats(first_rows(mlp_out_, rows.rows)));
}

void MoeActor::run_whole_shared_expert(const model::MoeWeights& weights, Matrix<const float> own,
                                       Matrix<float> out) {
  if (!weights.shared || shared_rows_.size() > 1) return;
  const auto span = context_.span(TraceOp::kSharedExpert, own.rows);
  const Matrix<float> partial = context_.workspace.floats(first_rows(mlp_partial_, own.rows));
  mlp_part(*weights.shared, own, partial);
  round_rows(partial, out, context_.rounding);
}

// The ids of the experts' copies that the rows of a chunk go to.
Matrix<const int32_t> MoeActor::choose_copies(Matrix<const int32_t> ids) {
  if (copies_.empty()) return ids;
  const Matrix<int32_t> chosen = context_.workspace.ints(first_rows(physical_ids_, ids.rows));
  const int64_t first_turn = step_ + context_.groups->expert_parallel.rank();
  for (int64_t r = 0; r < ids.rows; ++r)
    for (int64_t j = 0; j < ids.cols; ++j)
      chosen.row(r)[j] = copies_.physical(layer_, ids.row(r)[j], first_turn + r);
  return chosen;
}

comm::MoeExchange::Tokens MoeActor::chunk_tokens(Matrix<const float> own, int64_t first) {
  const auto span = context_.span(TraceOp::kPackRows, own.rows);
  const Workspace& workspace = context_.workspace;
  Matrix<const float> rows = moe_tp_rows_.gather(own, context_.row_format());
  const Matrix<const int32_t> own_ids =
      Matrix<const int32_t>(workspace.ints(topk_ids_)).rows_from(first, own.rows);
  const Matrix<const int32_t> ids =
      choose_copies(as_ids(moe_tp_ids_.gather(as_bits(own_ids), RowFormat::kF32)));
  Matrix<const float> weights =
      Matrix<const float>(workspace.floats(topk_weights_)).rows_from(first, own.rows);
  if (per_rank()) weights = moe_tp_weights_.gather(weights, RowFormat::kF32);

  const Matrix<float> payload = workspace.floats(first_rows(payload_, rows.rows));
  layers::parallel_for(rows.rows, layers::row_grain(rows.cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      pack_payload({rows.row(r), static_cast<size_t>(rows.cols)}, payload_format_,
                   reinterpret_cast<std::byte*>(payload.row(r)));
  });
  const auto choices = static_cast<size_t>(ids.rows * ids.cols);
  return {.rows = reinterpret_cast<const std::byte*>(payload.data),
          .row_stride = payload.stride * static_cast<int64_t>(sizeof(float)),
          .count = rows.rows,
          .topk_ids = {ids.data, choices},
          .weights = {weights.data, per_rank() ? choices : 0}};
}

void MoeActor::run_chunk(const model::MoeWeights& weights, Matrix<const float> normed,
                         Matrix<float> hidden, int64_t first, int64_t count) {
  const Matrix<const float> own = Matrix<const float>(normed).rows_from(first, count);
  const Matrix<float> shared(context_.workspace.floats(mlp_out_).rows_from(first, count));
  comm::MoeExchange::Tokens tokens = chunk_tokens(own, first);
  const bool beside_dispatch = context_.execution.multi_streams;
  if (!beside_dispatch) run_whole_shared_expert(weights, own, shared);
  int64_t done = 0;
  do {
    exchange_->start_dispatch(tokens);
    if (done == 0 && beside_dispatch) run_whole_shared_expert(weights, own, shared);
    exchange_->finish_dispatch();
    const int64_t taken = exchange_->taken();
    run_experts(weights);
    exchange_->start_combine();
    exchange_->finish_combine();
    add_answers(weights.shared ? shared : Matrix<float>(), hidden, first, done, taken);
    exchange_->release();
    tokens = tokens.from(taken, context_.config.gate.topk);
    done += taken;
  } while (exchange_->more());
}

// kPerExpert: the rows as they came, in the order of topk_ids. kPerRank: their sum.
void MoeActor::unpack_answers(int64_t token, Matrix<float> rows) const {
  const auto hidden_size = static_cast<size_t>(rows.cols);
  if (!per_rank()) {
    for (int j = 0; j < answer_rows_; ++j)
      unpack_row(exchange_->answer(token, j), result_format_, {rows.row(j), hidden_size});
    return;
  }
  sum_answers(exchange_->num_answers(token),
              [&](int i) {
                return Term{exchange_->answer(token, i), result_format_, 1};
              },
              0, {rows.data, hidden_size});
}

void MoeActor::add_answers(Matrix<const float> shared, Matrix<float> hidden, int64_t first,
                           int64_t done, int64_t taken) {
  const auto span = context_.span(TraceOp::kAddExperts, taken);
  const auto parallel_tokens = [&](int64_t tokens, const auto& body) {
    const int64_t grain = layers::row_grain(answer_rows_ * hidden.cols);
    layers::parallel_for(tokens, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) body(t);
    });
  };
  const auto shared_row = [&](int64_t row) { return shared.data ? shared.row(row) : nullptr; };
  if (moe_tp_rows_.size() == 1) {
    parallel_tokens(taken, [&](int64_t t) {
      const auto answer = [&](int i) { return exchange_->answer(t, i); };
      const int count = per_rank() ? exchange_->num_answers(t) : answer_rows_;
      add_token(answer, count, result_format_, shared_row(done + t), hidden, first + done + t);
    });
    return;
  }
  const Matrix<float> all =
      context_.workspace.floats(first_rows(union_answers_, taken * answer_rows_));
  parallel_tokens(
      taken, [&](int64_t t) { unpack_answers(t, all.rows_from(t * answer_rows_, answer_rows_)); });
  // Of the tokens [done, done + taken) of all moe_tp ranks each rank gets its own.
  const auto in_round = [&](int64_t row) { return std::clamp(row - done, int64_t{0}, taken); };
  for (int r = 0; r < moe_tp_rows_.size(); ++r) {
    const int64_t begin = moe_tp_rows_.offset(r);
    answer_rows_of_[moe_tp_rows_.group().world_rank(r)] = static_cast<int32_t>(
        (in_round(begin + moe_tp_rows_.rows(r)) - in_round(begin)) * answer_rows_);
  }
  moe_tp_results_.set_rows(answer_rows_of_);
  const Matrix<float> own =
      context_.workspace.floats(first_rows(own_answers_, moe_tp_results_.own_rows()));
  moe_tp_results_.scatter_sum(all, own, per_rank() ? Rounding::kNone : context_.rounding);
  const int64_t begin =
      std::max<int64_t>(0, done - moe_tp_rows_.offset(moe_tp_rows_.group().rank()));
  parallel_tokens(own.rows / answer_rows_, [&](int64_t t) {
    const auto answer = [&](int i) {
      return reinterpret_cast<const std::byte*>(own.row(t * answer_rows_ + i));
    };
    add_token(answer, answer_rows_, RowFormat::kF32, shared_row(begin + t), hidden,
              first + begin + t);
  });
}

// hidden += sum over the token's experts in ascending id of weight * result, then of weight *
// down_bias, + shared, in fp32 with one rounding: the order does not depend on which rank computed
// what. kPerRank: the results are sums of a rank, in the order of ranks.
template <class Answer>
void MoeActor::add_token(const Answer& answer, int count, RowFormat format, const float* shared,
                         Matrix<float> hidden, int64_t row) const {
  const Workspace& workspace = context_.workspace;
  const int32_t* experts = workspace.ints(topk_ids_).row(row);
  const int32_t* order = workspace.ints(expert_order_).row(row);
  const float* scores = workspace.floats(topk_weights_).row(row);
  const auto term = [&](int i) {
    return per_rank() ? Term{answer(i), format, 1}
                      : Term{answer(order[i]), format, scores[order[i]]};
  };
  float sum[kSumColumns];
  for (int64_t first = 0; first < hidden.cols; first += kSumColumns) {
    const int64_t columns = std::min(kSumColumns, hidden.cols - first);
    sum_answers(count, term, first, {sum, static_cast<size_t>(columns)});
    if (!down_bias_.empty())
      for (int64_t j = 0; j < topk_ids_.cols(); ++j)
        for (int64_t i = 0; i < columns; ++i)
          sum[i] += scores[order[j]] * down_bias_[experts[order[j]] * hidden.cols + first + i];
    if (shared != nullptr)
      for (int64_t i = 0; i < columns; ++i) sum[i] += shared[first + i];
    const Matrix<float> addend(sum, 1, columns);
    round_rows(addend, addend, context_.rounding);
    add_rows(hidden.rows_from(row, 1).columns_from(first, columns), addend, context_.rounding);
  }
}

}  // namespace troupe::actors
