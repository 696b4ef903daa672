// model/kv_scales.h: the scales that a checkpoint may have for an int8 KV cache: one number for
// each part of a layer's rows, stored as F32 [1].
//
// MLA: `self_attn.ckv_scale`, of the latent (cann-recipes-infer, DeepSeek-R1); GQA: `k_scale` and
// `v_scale` (compressed-tensors), of all kv heads.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/parallel_layout.h"

namespace troupe::model {

struct KvScaleTensor {
  std::string name;
  int slot = 0;    // of the layer in the cache (ModelConfig::kv_slot)
  Range elements;  // of a row of the cache of a single rank
};

// Those of every layer, the MTP module's included.
std::vector<KvScaleTensor> kv_scale_tensors(const ModelConfig& config);

using KvScales = std::map<std::string, float>;  // by tensor

}  // namespace troupe::model
