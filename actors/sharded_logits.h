// actors/sharded_logits.h: logits of some rows, the LM head cut over lmhead_tp ranks by vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "actors/rank_context.h"
#include "actors/row_exchange.h"
#include "layers/prepared_rows.h"

namespace troupe::actors {

class ShardedLogits {
 public:
  explicit ShardedLogits(const RankContext& context);

  // Calls use(i, logits [vocab]) for rows.row(picks[i]), a few rows at a time. Collective over
  // lmhead_tp: every rank calls it, with any number of picks.
  // candidates: how many of the best logits are needed (the others are -infinity), so that arg-max
  // and top-k sampling do not gather the vocabulary; 0: all.
  template <class Use>
  void for_each(const model::PackedMatrix& head, Matrix<const float> rows,
                std::span<const int> picks, int candidates, const Use& use) {
    const int32_t most = most_picks(static_cast<int32_t>(picks.size()));
    for (int32_t first = 0; first < most; first += kLogitRows) {
      const Matrix<const float> logits = compute_round(head, rows, picks, first, candidates);
      for (int64_t i = 0; i < logits.rows; ++i)
        use(first + static_cast<int>(i),
            std::span(logits.row(i), static_cast<size_t>(logits.cols)));
    }
  }

 private:
  // Own rows of logits held at once: bounds memory at large vocabularies.
  static constexpr int kLogitRows = 8;

  int32_t most_picks(int32_t own_picks);
  // The logits of picks [first, first + kLogitRows), as far as there are any.
  Matrix<const float> compute_round(const model::PackedMatrix& head, Matrix<const float> rows,
                                    std::span<const int> picks, int32_t first, int candidates);
  void compute_block(const model::PackedMatrix& head, Matrix<const float> rows,
                     std::span<const int> picks);
  void bring_home(int candidates);
  void pick_candidates(Matrix<const float> shard, int count, Matrix<float> out);

  RankContext context_;
  RowExchange ranks_;
  layers::InputBuffer inputs_;
  msg::Tensor block_;   // [kLogitRows, hidden] own rows
  msg::Tensor shard_;   // [kLogitRows * size, my vocabulary columns] everybody's rows
  msg::Tensor logits_;  // [kLogitRows, vocab] own rows
  std::vector<int32_t> counts_, world_rows_, order_;
  std::vector<float> sent_, received_;
  std::vector<Matrix<const float>> send_views_;
  std::vector<Matrix<float>> receive_views_;
};

}  // namespace troupe::actors
