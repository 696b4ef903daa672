// model/convert.h: a checkpoint rewritten with weights of another type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>

#include "model/kv_scales.h"

namespace troupe::model {

enum class QuantMode {
  // fp8 matrices become bf16: code * scale, rounded once; fp16 ones are rounded, MXFP4 experts
  // exact, in the form of Hugging Face's unquantised GPT-OSS: `experts.gate_up_proj` [experts,
  // hidden, 2 * width], `experts.down_proj` [experts, width, hidden].
  kBfloat16,
  // Matrices become int8, one fp32 scale per output row: scale = max |w| / 127, code =
  // round(w / scale), ties to even; activations are quantised when the model runs. Written as
  // compressed-tensors (format int-quantized): `X.weight` I8 [out, in], `X.weight_scale` F32
  // [out, 1]. The gate, the embedding, the heads, eh_proj and kv_b_proj keep their precision (bf16
  // where they are fp8): kv_b_proj is folded into the query and the output, where its codes would
  // be of no use.
  kW8A8C16,
  // The same, with the scales of an int8 KV cache (model/kv_scales.h) and a kv_cache_scheme.
  kW8A8C8,
};

struct ConvertOptions {
  std::filesystem::path input, output;
  QuantMode mode = QuantMode::kBfloat16;
  // kW8A8C8: measures the scales, on this text; asked for once, also of a conversion that goes on.
  std::function<KvScales()> calibrate = {};
  std::filesystem::path calibration_file = {};
  size_t shard_bytes = size_t{4} << 30;  // a shard is closed when it has that many
  std::function<void(size_t done, size_t total)> progress;  // bytes written; may be empty
};

// Writes `input` converted to `output`, which is created: shards, index, config.json, and whatever
// else lies in `input` (tokenizer, generation_config.json, chat template). One matrix is in memory
// at a time. A shard appears under its name when it is whole and config.json last, so that a
// conversion cut short cannot be loaded; the same call then goes on where that one ended.
// Throws UserError naming file and tensor where `input` is wrong or holds nothing to convert, where
// `output` holds something else, or where the disk is too small.
void convert_checkpoint(const ConvertOptions& options);

}  // namespace troupe::model
