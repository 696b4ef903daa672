// What a rank's experts make of the rows that have come to them.
#include <algorithm>
#include <iterator>

#include "actors/moe_actor.h"
#include "layers/bias.h"
#include "layers/linear.h"
#include "layers/team.h"

namespace troupe::actors {

using comm::TraceOp;
using layers::Rounding;

void MoeActor::run_experts(const model::MoeWeights& weights) {
  const comm::TraceSpan span(context_.communicator.trace(), TraceOp::kExperts,
                             exchange_->total_arrivals());
  const Matrix<float> sums = context_.workspace.floats(partial_sums_);
  const int sources = context_.groups->expert_parallel.size();
  if (per_rank()) std::fill_n(sums.data, exchange_->first_result(sources) * sums.cols, 0.0f);
  for (int e = 0; e < exchange_->num_local_experts(); ++e) {
    const auto arrivals = exchange_->arrivals(e);
    add_expert_rows(weights.experts[e], arrivals);
    count_expert_rows(e, std::ssize(arrivals));
  }
  run_expert_rows();
  if (!per_rank()) return;
  for (int source = 0; source < sources; ++source)
    for (int64_t slot = 0; slot < exchange_->num_results(source); ++slot)
      pack_row({sums.row(exchange_->first_result(source) + slot), static_cast<size_t>(sums.cols)},
               result_format_, exchange_->result_row(source, slot));
}

void MoeActor::count_expert_rows(int local_expert, int64_t rows) {
  if (rows == 0) return;
  if (const auto load = expert_load_.find(layer_); load != expert_load_.end())
    load->second[local_expert] += static_cast<uint64_t>(rows);
  if (comm::Trace* trace = context_.communicator.trace())
    trace->add_expert_rows(exchange_->first_local_expert() + local_expert, rows);
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
    gate_up_biases_.push_back(weights.gate_up_bias);
    down_jobs_.push_back({&weights.down, activated.rows_from(first, count),
                          workspace.floats(expert_out_).rows_from(first, count)});
    rows = rows.subspan(taken.size());
  }
}

// The experts' inputs, in their order, as the jobs' own: their matrices are cut alike and of one
// type.
void MoeActor::set_inputs(std::span<layers::LinearJob> jobs, const layers::PreparedRows& all) {
  int64_t first = 0;
  for (layers::LinearJob& job : jobs) {
    job.x = all.rows_from(first, job.x.rows);
    first += job.x.rows;
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
  set_inputs(gate_up_jobs_, inputs_.prepare(*gate_up_jobs_[0].w, in, context_.rounding,
                                            [&](int64_t r, Matrix<float> row) {
                                              unpack_payload(expert_arrivals_[r].row,
                                                             payload_format_, context_.rounding,
                                                             {row.data, hidden_size});
                                            }));
  layers::grouped_linear(gate_up_jobs_, Rounding::kNone);
  for (size_t i = 0; i < gate_up_jobs_.size(); ++i)
    if (!gate_up_biases_[i].empty())
      layers::add_bias(gate_up_jobs_[i].y, gate_up_biases_[i], Rounding::kNone);
  set_inputs(down_jobs_, activate(*down_jobs_[0].w, gate_up, activated));
  layers::grouped_linear(down_jobs_, Rounding::kNone);
  keep_results(out);
  expert_arrivals_.clear();
  gate_up_jobs_.clear();
  gate_up_biases_.clear();
  down_jobs_.clear();
}

// Experts come in ascending order, and so do the terms of a rank's sum. Threads share rows where
// each has a place of its own, and columns where several are added.
void MoeActor::keep_results(Matrix<const float> out) {
  const auto hidden_size = static_cast<size_t>(out.cols);
  if (!per_rank()) {
    layers::parallel_for(out.rows, layers::row_grain(out.cols), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        pack_row({out.row(r), hidden_size}, result_format_,
                 exchange_->result_row(expert_arrivals_[r]));
    });
    return;
  }
  const Matrix<float> sums = context_.workspace.floats(partial_sums_);
  layers::parallel_for(out.cols, layers::row_grain(out.rows), [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < out.rows; ++r) {
      const comm::MoeExchange::Arrival& arrival = expert_arrivals_[r];
      float* sum = sums.row(exchange_->first_result(arrival.source) + arrival.result_slot);
      for (int64_t i = begin; i < end; ++i) sum[i] += arrival.weight * out.row(r)[i];
    }
  });
}

}  // namespace troupe::actors
