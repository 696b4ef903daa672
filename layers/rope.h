// layers/rope.h: rotary position embedding (Su et al., 2021) with YaRN scaling (Peng et al., 2023).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/matrix.h"
#include "layers/rounding.h"

namespace troupe::layers {

// The "rope_scaling" of config.json, type "yarn".
struct YarnConfig {
  double factor = 1;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
  int64_t original_max_position_embeddings = 4096;
  bool truncate = true;  // the ramp's ends are whole dimensions
};

// The frequencies of one model; angles are computed per step (one cos and sin per token and pair,
// shared by all layers), so no table over max_position_embeddings is kept.
class Rope {
 public:
  // dim: qk_rope_head_dim, even. With YaRN every frequency is a blend of itself and itself / factor
  // by a ramp between the dimensions where beta_fast and beta_slow rotations fit into the original
  // length (floored and ceiled where yarn.truncate is set, clamped to [0, dim - 1]), as
  // DeepSeek-V3's inference/model.py precompute_freqs_cis does; unlike there, at every position.
  // Without truncation and with the default mscales it is GPT-OSS's (openai/gpt-oss,
  // gpt_oss/torch/model.py RotaryEmbedding).
  Rope(int dim, double theta, const std::optional<YarnConfig>& yarn);

  int dim() const { return dim_; }
  // m^2 with m = 0.1 * mscale_all_dim * ln(factor) + 1: what the softmax scale is multiplied by.
  double softmax_scale_factor() const { return softmax_scale_factor_; }

  // cos, sin [tokens, dim / 2] out, times mscale(factor, mscale) / mscale(factor, mscale_all_dim).
  // Computed in double, then rounded.
  void angles(std::span<const int32_t> positions, Matrix<float> cos, Matrix<float> sin) const;

 private:
  int dim_;
  double softmax_scale_factor_;
  double amplitude_;
  std::vector<double> frequencies_;  // [dim / 2]
};

// Which elements of a vector are turned together: (0, 1), (2, 3), ... (DeepSeek) or
// (i, i + dim / 2) (GPT-OSS, Qwen).
enum class RopePairs { kAdjacent, kHalves };

// Rotates the pairs of each vector by its token's angles, in place: (a, b) -> (a cos - b sin, a sin
// + b cos), products and difference each rounded to fp32, then `rounding`. x [tokens,
// vectors_per_token * dim] with any stride; cos, sin [tokens, dim / 2].
void apply_rope(Matrix<float> x, int vectors_per_token, int64_t vector_stride,
                Matrix<const float> cos, Matrix<const float> sin, Rounding rounding,
                RopePairs pairs = RopePairs::kAdjacent);

}  // namespace troupe::layers
