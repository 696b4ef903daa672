#include "model/kv_scales.h"

#include <fmt/format.h>

namespace troupe::model {

std::vector<KvScaleTensor> kv_scale_tensors(const ModelConfig& config) {
  std::vector<KvScaleTensor> tensors;
  const int layers = config.num_hidden_layers + (config.num_nextn_predict_layers > 0 ? 1 : 0);
  for (int layer = 0; layer < layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
    const int slot = config.kv_slot(layer);
    if (config.uses_gqa()) {
      const int64_t width = config.num_key_value_heads * config.qk_head_dim();
      tensors.push_back({prefix + "k_scale", slot, {0, width}});
      tensors.push_back({prefix + "v_scale", slot, {width, 2 * width}});
    } else {
      tensors.push_back({prefix + "ckv_scale", slot, {0, config.kv_lora_rank}});
    }
  }
  return tensors;
}

}  // namespace troupe::model
