#include "launcher/forward_work.h"

#include <algorithm>
#include <numeric>

#include "actors/rank.h"
#include "base/error.h"
#include "launcher/launch_sizes.h"
#include "model/parallel_layout.h"

namespace troupe::launcher {

using comm::TraceOp;
using layers::Arithmetic;
using layers::PackedMatrix;

double Work::gflop() const { return std::reduce(operations.begin(), operations.end()) * 1e-9; }

void Work::add(const Work& other) {
  weight_bytes += other.weight_bytes;
  kv_bytes += other.kv_bytes;
  for (size_t i = 0; i < operations.size(); ++i) operations[i] += other.operations[i];
}

void Work::scale(double factor) {
  weight_bytes *= factor;
  kv_bytes *= factor;
  for (double& operation : operations) operation *= factor;
}

ForwardWork::ForwardWork(const Config& config, const model::ModelConfig& model)
    : config_(config), model_(model) {
  TROUPE_CHECK(is_known(config, model));
  const model::ParallelLayout layout(config.parallel, model);
  actors::SchedulerLimits limits = scheduler_limits(config, model, {}, 0);
  limits.run_mtp = false;
  const model::WeightLoader loader(config.model.model_path, model, layout,
                                   actors::weight_options(describe_launch(config, limits, 0)));
  for (int rank = 0; rank < config.parallel.world_size; ++rank)
    ranks_.push_back(loader.describe(rank));
}

Arithmetic ForwardWork::arithmetic(layers::WeightType type) const {
  if (config_.model.dtype == ComputeType::kFloat32) return Arithmetic::kF32;
  if (type == layers::WeightType::kF32) return Arithmetic::kF32;
  const bool wide = type == layers::WeightType::kBf16 || type == layers::WeightType::kFp8;
  return wide ? Arithmetic::kBf16 : Arithmetic::kInt8;  // integers and codes of 4 bits: as int8
}

// Rows that the ranks of one tensor-parallel group hold; sequences go to data-parallel ranks in
// turn.
double ForwardWork::rows_of_group(const ForwardShape& shape, int rank, int tp_size) const {
  const int attn_tp = config_.parallel.attn_tp_size, dp_size = config_.parallel.attn_dp_size();
  double rows = 0;
  for (const int member : model::ParallelLayout::tp_group(rank, tp_size)) {
    const int dp_rank = member / attn_tp;
    const int sequences = (shape.sequences + dp_size - 1 - dp_rank) / dp_size;
    rows += static_cast<double>(sequences * shape.rows) / attn_tp;
  }
  return rows;
}

void ForwardWork::add(const PackedMatrix& matrix, double rows, Work& work) const {
  if (rows == 0) return;
  // Less than a row on average: one of the ranks that share it has the row, and reads.
  work.weight_bytes += static_cast<double>(matrix.bytes()) * std::min(rows, 1.0);
  work.operations[static_cast<size_t>(arithmetic(matrix.type))] +=
      2 * rows * static_cast<double>(matrix.rows * matrix.cols);
}

void ForwardWork::add(const model::MlpWeights& mlp, double rows, Work& work) const {
  add(mlp.gate_up, rows, work);
  add(mlp.down, rows, work);
}

void ForwardWork::add_attention(const model::AttentionWeights& weights, double own_rows,
                                double o_rows, OperationWorks& works) const {
  const model::MlaWeights& mla = *weights.mla;
  for (const PackedMatrix* matrix : {&mla.q_a, &mla.q_b, &mla.kv_a})
    add(*matrix, own_rows, works[TraceOp::kQueryProjection]);
  for (const PackedMatrix& head : mla.w_uk) add(head, own_rows, works[TraceOp::kAbsorb]);
  for (const PackedMatrix& head : mla.w_uv) add(head, own_rows, works[TraceOp::kValueProjection]);
  add(weights.o, o_rows, works[TraceOp::kOutputProjection]);
}

// Every expert is as large as the others, and a row meets topk of them.
void ForwardWork::add_experts(const ForwardShape& shape, Work& work) const {
  const model::LayerWeights* layer = nullptr;
  double moe_layers = 0;
  for (const model::LayerWeights& candidate : ranks_[0].layers) {
    if (!candidate.moe) continue;
    layer = &candidate;
    ++moe_layers;
  }
  if (layer == nullptr) return;
  Work expert;  // met by one row
  for (int shard = 0; shard < config_.parallel.moe_tp_size; ++shard)
    add(layer->moe->experts.front(), 1, expert);
  const double rows = static_cast<double>(shape.sequences * shape.rows);
  work.weight_bytes += expert.weight_bytes * shape.experts_touched;
  for (size_t i = 0; i < expert.operations.size(); ++i)
    work.operations[i] += expert.operations[i] * rows * model_.gate.topk * moe_layers;
}

// A row at position p sees p + 1 rows of the cache. Each rank of an attention group keeps and reads
// them all, once for all its heads and for all rows of the sequence.
void ForwardWork::add_cache_reads(const ForwardShape& shape, Work& work) const {
  const double heads = model_.num_attention_heads;
  const double last = static_cast<double>(shape.first_position + shape.rows);
  const double seen =
      static_cast<double>(shape.rows) * (static_cast<double>(shape.first_position + 1) + last) / 2;
  const double width = static_cast<double>(model_.kv_width());
  const auto row = static_cast<double>(
      actors::kv_cache_shape(describe_launch(config_, {}, 0), model_).row_bytes());
  const bool is_f32 = config_.model.dtype == ComputeType::kFloat32;
  const double layers_and_sequences =
      static_cast<double>(model_.num_hidden_layers) * shape.sequences;
  work.kv_bytes += layers_and_sequences * last * row * config_.parallel.attn_tp_size;
  work.operations[static_cast<size_t>(is_f32 ? Arithmetic::kF32 : Arithmetic::kBf16)] +=
      layers_and_sequences * 2 * heads * seen * (width + static_cast<double>(model_.kv_lora_rank));
}

OperationWorks ForwardWork::by_operation(const ForwardShape& shape) const {
  const model::ParallelSizes& sizes = config_.parallel;
  const model::ParallelLayout layout(sizes, model_);
  const TraceOp shared = sizes.shared_tp_size > 1 ? TraceOp::kMlp : TraceOp::kSharedExpert;
  OperationWorks works;
  for (int rank = 0; rank < sizes.world_size; ++rank) {
    const auto rows = [&](int tp_size) { return rows_of_group(shape, rank, tp_size); };
    for (const model::LayerWeights& layer : ranks_[rank].layers) {
      add_attention(layer.attention, rows(sizes.attn_tp_size), rows(layout.o_proj_tp_size()),
                    works);
      if (layer.dense) add(*layer.dense, rows(sizes.dense_tp_size), works[TraceOp::kMlp]);
      if (!layer.moe) continue;
      add(layer.moe->gate, rows(1), works[TraceOp::kGate]);
      if (layer.moe->shared) add(*layer.moe->shared, rows(sizes.shared_tp_size), works[shared]);
    }
    add(ranks_[rank].lm_head, rows(sizes.lmhead_tp_size) / static_cast<double>(shape.rows),
        works[TraceOp::kLmHead]);
  }
  add_experts(shape, works[TraceOp::kExperts]);
  add_cache_reads(shape, works[TraceOp::kAttend]);
  return works;
}

Work ForwardWork::of(const ForwardShape& shape) const {
  Work sum;
  for (const auto& [op, work] : by_operation(shape)) sum.add(work);
  return sum;
}

}  // namespace troupe::launcher
