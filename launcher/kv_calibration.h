// launcher/kv_calibration.h: scales of an int8 KV cache, measured (model/kv_scales.h).
#pragma once

#include <filesystem>

#include "model/kv_scales.h"

namespace troupe::launcher {

// The model reads the text, in pieces of 512 tokens, on one rank with all cores and rows of bf16 in
// its cache. A scale is the greatest magnitude that its elements had, over 127: nothing of this
// text would be cut. UserError when the model cannot run here, or the text has no token.
model::KvScales calibrate_kv_cache(const std::filesystem::path& model_path,
                                   const std::filesystem::path& text_file);

}  // namespace troupe::launcher
