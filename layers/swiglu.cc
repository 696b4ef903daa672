#include "layers/swiglu.h"

#include "base/bf16.h"
#include "layers/exp.h"
#include "layers/kernels.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

void check_shapes(Matrix<const float> gate_up, Matrix<float> out) {
  TROUPE_CHECK(gate_up.rows == out.rows && gate_up.cols == 2 * out.cols,
               "gate_up [{}, {}] out [{}, {}]", gate_up.rows, gate_up.cols, out.rows, out.cols);
}

}  // namespace

void swiglu(Matrix<const float> gate_up, Matrix<float> out, Rounding rounding) {
  check_shapes(gate_up, out);
  const Kernels& isa = kernels();
  parallel_for(out.rows, row_grain(out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      isa.swiglu_row({.gate = gate_up.row(t),
                      .up = gate_up.row(t) + out.cols,
                      .out = out.row(t),
                      .width = out.cols,
                      .round_to_bf16 = rounding == Rounding::kBf16});
  });
}

void clamped_swiglu(const ClampedSwiglu& config, Matrix<const float> gate_up, Matrix<float> out,
                    Rounding rounding) {
  check_shapes(gate_up, out);
  const Kernels& isa = kernels();
  parallel_for(out.rows, row_grain(out.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      isa.clamped_swiglu_row({.gate = gate_up.row(t),
                              .up = gate_up.row(t) + out.cols,
                              .out = out.row(t),
                              .width = out.cols,
                              .alpha = config.alpha,
                              .limit = config.limit,
                              .round_to_bf16 = rounding == Rounding::kBf16});
  });
}

namespace reference {

void swiglu(Matrix<const float> gate_up, Matrix<float> out, Rounding rounding) {
  check_shapes(gate_up, out);
  for (int64_t t = 0; t < out.rows; ++t) {
    for (int64_t i = 0; i < out.cols; ++i) {
      const float gate = gate_up.row(t)[i];
      const float up = gate_up.row(t)[out.cols + i];
      const float value = gate / (1.0f + exp_f32(0.0f - gate)) * up;
      out.row(t)[i] = rounding == Rounding::kBf16 ? round_to_bf16(value) : value;
    }
  }
}

void clamped_swiglu(const ClampedSwiglu& config, Matrix<const float> gate_up, Matrix<float> out,
                    Rounding rounding) {
  check_shapes(gate_up, out);
  for (int64_t t = 0; t < out.rows; ++t) {
    for (int64_t i = 0; i < out.cols; ++i) {
      float gate = gate_up.row(t)[i];
      float up = gate_up.row(t)[out.cols + i];
      if (gate > config.limit) gate = config.limit;
      if (up > config.limit) up = config.limit;
      if (up < -config.limit) up = -config.limit;
      const float value = gate / (1.0f + exp_f32(0.0f - config.alpha * gate)) * (up + 1.0f);
      out.row(t)[i] = rounding == Rounding::kBf16 ? round_to_bf16(value) : value;
    }
  }
}

}  // namespace reference
}  // namespace troupe::layers
