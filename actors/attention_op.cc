#include "actors/attention_op.h"

#include "actors/mla_attention.h"

namespace troupe::actors {

std::unique_ptr<AttentionOp> make_attention_op(const RankContext& context) {
  return std::make_unique<MlaAttention>(context);
}

}  // namespace troupe::actors
