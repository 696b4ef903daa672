// layers/isa_kernels.h: the kernels of one instruction set and their table. The body of each
// isa_*.cc, which defines TROUPE_ISA_NAMESPACE and is compiled with that set's flags.
#pragma once

#include "layers/attention_kernel.h"
#include "layers/kernels.h"
#include "layers/linear_kernel.h"
#if defined(__AVX512BF16__)
#include "layers/attention_dot_kernel.h"
#include "layers/linear_dot_kernel.h"
#endif
#include "layers/linear_quantized_kernel.h"
#include "layers/peak_kernel.h"
#include "layers/quantize_kernel.h"
#include "layers/rms_norm_kernel.h"
#include "layers/swiglu_kernel.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

inline void round_to_bf16_row(const float* x, int64_t count, Bf16* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, load(x + i));
  store_first(out + i, load_first(x + i, count - i), count - i);
}

inline void widen_bf16_row(const Bf16* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(out + i, load(x + i));
  store_first(out + i, load_first(x + i, count - i), count - i);
}

const Kernels kKernels {
  .linear_f32 = linear<float>, .linear_bf16 = linear<Bf16>, .linear_fp8 = linear<Fp8>,
#if defined(__AVX512BF16__)
  .linear_dot_bf16 = linear_dot<Bf16>, .linear_dot_fp8 = linear_dot<Fp8>,
#else
  .linear_dot_bf16 = nullptr, .linear_dot_fp8 = nullptr,
#endif
  .linear_int8 = linear_quantized<Int8Weights>, .linear_int4 = linear_quantized<Int4Weights>,
  .linear_mxfp4 = linear_quantized<Mxfp4Weights>, .quantize_row = quantize_row,
  .round_to_bf16_row = round_to_bf16_row, .widen_bf16_row = widen_bf16_row,
  .rms_norm_row = rms_norm_row, .read_floats = read_floats, .fma_chains = fma_chains,
  .swiglu_row = swiglu_row, .clamped_swiglu_row = clamped_swiglu_row,
  .attention_f32 = attention<float>, .attention_bf16 = attention<Bf16>,
  .attention_int8 = attention<int8_t>, .quantize_kv = quantize_kv,
#if defined(__AVX512BF16__)
  .attention_dot = attention_dot,
#endif
};

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
