#include "actors/attention_op.h"

#include "actors/gqa_attention.h"
#include "actors/mla_attention.h"

namespace troupe::actors {

std::unique_ptr<AttentionOp> make_attention_op(const RankContext& context) {
  if (context.config.uses_gqa()) return std::make_unique<GqaAttention>(context);
  return std::make_unique<MlaAttention>(context);
}

}  // namespace troupe::actors
