// actors/attention_op.h: what differs between kinds of attention: from normed rows to the outputs
// of this rank's heads, through the KV cache. The layers around it are AttentionActor's.
#pragma once

#include <memory>
#include <span>

#include "actors/rank_context.h"
#include "layers/kv_cache.h"

namespace troupe::actors {

class AttentionOp {
 public:
  virtual ~AttentionOp() = default;

  // The rows of the layers that follow: a query per row, [rows, 1] its position.
  virtual void begin_forward(std::span<const layers::KvQuery> queries,
                             Matrix<const int32_t> positions) = 0;

  // Writes the rows' keys and values into the cache, then attends.
  //   normed [rows, hidden]   returns [rows, heads of this rank * v_head_dim], rounded to the
  //   dtype, valid until the next call
  virtual Matrix<float> attend(int layer, const model::AttentionWeights& weights,
                               Matrix<const float> normed) = 0;
};

std::unique_ptr<AttentionOp> make_attention_op(const RankContext& context);

}  // namespace troupe::actors
