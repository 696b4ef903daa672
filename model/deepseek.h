// model/deepseek.h: the tensors of DeepSeek-V2 and V3: their names, and how each is cut.
#pragma once

#include "model/model_config.h"
#include "model/parallel_layout.h"
#include "model/weight_builder.h"
#include "model/weights.h"

namespace troupe::model {

// Visits every weight of builder.world_rank() in the order of the forward pass.
ModelWeights build_deepseek(const ModelConfig& config, const ParallelLayout& layout, bool with_mtp,
                            WeightBuilder& builder);

}  // namespace troupe::model
