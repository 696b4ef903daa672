// layers/swiglu.h: the gated unit of the MLPs (Shazeer, 2020).
#pragma once

#include "base/matrix.h"
#include "layers/rounding.h"

namespace troupe::layers {

// out[t][i] = round(silu(gate) * up), gate = gate_up[t][i], up = gate_up[t][width + i],
// silu(x) = x / (1 + exp(-x)), exp as in layers/simd.h on every path.
//   gate_up [tokens, 2 width]   out [tokens, width]
void swiglu(Matrix<const float> gate_up, Matrix<float> out, Rounding rounding);

// GPT-OSS's variant (openai/gpt-oss, gpt_oss/torch/model.py, swiglu).
struct ClampedSwiglu {
  float alpha = 1.702f;
  float limit = 7;
};

// out[t][i] = round(gate * sigmoid(alpha gate) * (up + 1)), with the gate clamped to at most limit
// and up to [-limit, limit]. Shapes as above.
void clamped_swiglu(const ClampedSwiglu& config, Matrix<const float> gate_up, Matrix<float> out,
                    Rounding rounding);

namespace reference {
void swiglu(Matrix<const float> gate_up, Matrix<float> out, Rounding rounding);
void clamped_swiglu(const ClampedSwiglu& config, Matrix<const float> gate_up, Matrix<float> out,
                    Rounding rounding);
}  // namespace reference

}  // namespace troupe::layers
