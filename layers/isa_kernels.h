// layers/isa_kernels.h: the kernels of one instruction set and their table. The body of each
// isa_*.cc, which defines TROUPE_ISA_NAMESPACE and is compiled with that set's flags.
#pragma once

#include "layers/attention_kernel.h"
#include "layers/kernels.h"
#include "layers/linear_kernel.h"
#include "layers/peak_kernel.h"
#include "layers/rms_norm_kernel.h"
#include "layers/swiglu_kernel.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

const Kernels kKernels{
    .linear_f32 = linear<float>,
    .linear_bf16 = linear<Bf16>,
    .linear_fp8 = linear<Fp8>,
    .rms_norm_row = rms_norm_row,
    .read_floats = read_floats,
    .fma_chains = fma_chains,
    .swiglu_row = swiglu_row,
    .clamped_swiglu_row = clamped_swiglu_row,
    .attention_f32 = attention<float>,
    .attention_bf16 = attention<Bf16>,
};

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
