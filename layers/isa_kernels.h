// layers/isa_kernels.h: the kernels of one instruction set and their table. The body of each
// isa_*.cc, which defines TROUPE_ISA_NAMESPACE and is compiled with that set's flags.
#pragma once

#include "layers/kernels.h"
#include "layers/linear_kernel.h"
#include "layers/mla_kernel.h"
#include "layers/rms_norm_kernel.h"
#include "layers/swiglu_kernel.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {

const Kernels kKernels{
    .linear_f32 = linear<float>,
    .linear_bf16 = linear<Bf16>,
    .linear_fp8 = linear<Fp8>,
    .rms_norm_row = rms_norm_row,
    .swiglu_row = swiglu_row,
    .mla_f32 = mla<float>,
    .mla_bf16 = mla<Bf16>,
};

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
