// actors/embedding_lookup.h: token ids to rows, the table cut over embed_tp ranks by vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "actors/rank_context.h"
#include "actors/row_exchange.h"
#include "model/weights.h"

namespace troupe::actors {

class EmbeddingLookup {
 public:
  EmbeddingLookup(const RankContext& context, const model::Embedding& table);

  // rows[i] = table[ids[i]], widened to fp32. Collective over embed_tp: ids travel to everybody,
  // each row comes from the one rank that holds it.
  void lookup(std::span<const int32_t> ids, Matrix<float> rows);

 private:
  void read_row(int32_t id, std::span<float> row) const;
  void exchange_ids(std::span<const int32_t> ids);

  model::Embedding table_;
  RowExchange ranks_;
  RowFormat format_;
  int64_t vocab_size_;
  // Of the group, in its order; grown, then reused.
  std::vector<int32_t> counts_, group_ids_;
  std::vector<std::vector<float>> sent_, received_;
  std::vector<Matrix<const float>> send_views_;
  std::vector<Matrix<float>> receive_views_;
};

}  // namespace troupe::actors
