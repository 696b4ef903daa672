#include "actors/sharded_logits.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "layers/linear.h"

namespace troupe::actors {

ShardedLogits::ShardedLogits(const RankContext& context)
    : context_(context), ranks_(context.groups->lmhead_tp) {
  Workspace& workspace = context_.workspace;
  const int64_t columns = context_.layout.vocab_columns(context_.communicator.world_rank()).size();
  block_ = workspace.allocate(kLogitRows, context_.config.hidden_size);
  shard_ = workspace.allocate(kLogitRows * ranks_.size(), columns);
  logits_ = workspace.allocate(kLogitRows, context_.config.vocab_size);
  counts_.resize(ranks_.size());
  world_rows_.resize(context_.communicator.world_size());
  order_.resize(columns);
}

// The largest number of picks in the group: how many rounds all of its ranks run.
int32_t ShardedLogits::most_picks(int32_t own_picks) {
  ranks_.group().all_gather(std::as_bytes(std::span(&own_picks, 1)),
                            std::as_writable_bytes(std::span(counts_)));
  return *std::ranges::max_element(counts_);
}

// My columns of the logits of everybody's rows of this round.
void ShardedLogits::compute_block(const model::PackedMatrix& head, Matrix<const float> rows,
                                  std::span<const int> picks) {
  const auto own = static_cast<int64_t>(picks.size());
  const Matrix<float> block = context_.workspace.floats(first_rows(block_, own));
  for (int64_t i = 0; i < own; ++i)
    std::memcpy(block.row(i), rows.row(picks[i]), rows.cols * sizeof(float));
  const Matrix<const float> all = ranks_.gather(block, context_.row_format());
  const auto span = context_.span(comm::TraceOp::kLmHead, all.rows);
  layers::linear(head, inputs_.prepare(head, all, context_.rounding),
                 context_.workspace.floats(first_rows(shard_, all.rows)), layers::Rounding::kNone);
}

// Each row of `out` gets the `count` best of the shard's row as (logit, column) pairs; of equal
// logits the lower column comes first, a NaN counts as minus infinity.
void ShardedLogits::pick_candidates(Matrix<const float> shard, int count, Matrix<float> out) {
  for (int64_t r = 0; r < shard.rows; ++r) {
    const float* logits = shard.row(r);
    const auto key = [&](int32_t i) {
      return std::isnan(logits[i]) ? -std::numeric_limits<float>::infinity() : logits[i];
    };
    std::iota(order_.begin(), order_.end(), 0);
    std::partial_sort(
        order_.begin(), order_.begin() + count, order_.end(),
        [&](int32_t a, int32_t b) { return key(a) > key(b) || (key(a) == key(b) && a < b); });
    for (int i = 0; i < count; ++i) {
      out.row(r)[2 * i] = logits[order_[i]];
      out.row(r)[2 * i + 1] = std::bit_cast<float>(order_[i]);
    }
  }
}

// From my columns of everybody's rows to all columns of my rows.
void ShardedLogits::bring_home(int candidates) {
  const Matrix<float> shard = context_.workspace.floats(first_rows(shard_, ranks_.total_rows()));
  const Matrix<float> logits = context_.workspace.floats(first_rows(logits_, ranks_.own_rows()));
  const int64_t vocab = context_.config.vocab_size;
  const auto kept = [&](int64_t columns) { return std::min<int64_t>(candidates, columns); };
  send_views_.clear();
  receive_views_.clear();
  if (candidates == 0) {
    for (int r = 0; r < ranks_.size(); ++r) {
      const model::Range columns = model::piece(vocab, r, ranks_.size());
      send_views_.push_back(ranks_.rows_of(r, shard));
      receive_views_.emplace_back(logits.data + columns.begin, logits.rows, columns.size(),
                                  logits.stride);
    }
    return ranks_.exchange(send_views_, receive_views_, RowFormat::kF32);
  }
  sent_.resize(shard.rows * 2 * kept(shard.cols));
  const Matrix<float> best(sent_.data(), shard.rows, 2 * kept(shard.cols));
  pick_candidates(shard, static_cast<int>(kept(shard.cols)), best);
  received_.resize(ranks_.size() * logits.rows * 2 * candidates);
  for (int r = 0; r < ranks_.size(); ++r) {
    const int64_t from_r = kept(model::piece(vocab, r, ranks_.size()).size());
    send_views_.push_back(ranks_.rows_of(r, best));
    receive_views_.emplace_back(received_.data() + r * logits.rows * 2 * candidates, logits.rows,
                                2 * from_r);
  }
  ranks_.exchange(send_views_, receive_views_, RowFormat::kF32);
  for (int64_t row = 0; row < logits.rows; ++row) {
    std::fill_n(logits.row(row), vocab, -std::numeric_limits<float>::infinity());
    for (int r = 0; r < ranks_.size(); ++r) {
      const int64_t first = model::piece(vocab, r, ranks_.size()).begin;
      const float* pairs = receive_views_[r].row(row);
      for (int64_t i = 0; i < receive_views_[r].cols; i += 2)
        logits.row(row)[first + std::bit_cast<int32_t>(pairs[i + 1])] = pairs[i];
    }
  }
}

Matrix<const float> ShardedLogits::compute_round(const model::PackedMatrix& head,
                                                 Matrix<const float> rows,
                                                 std::span<const int> picks, int32_t first,
                                                 int candidates) {
  for (int r = 0; r < ranks_.size(); ++r)
    world_rows_[ranks_.group().world_rank(r)] = std::clamp(counts_[r] - first, 0, kLogitRows);
  ranks_.set_rows(world_rows_);
  const auto own = ranks_.own_rows();
  compute_block(head, rows, picks.subspan(own == 0 ? 0 : first, own));
  if (ranks_.size() == 1) return context_.workspace.floats(first_rows(shard_, own));
  bring_home(candidates);
  return context_.workspace.floats(first_rows(logits_, own));
}

}  // namespace troupe::actors
