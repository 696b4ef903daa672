// layers/isa.h: which instruction set the kernels of this process use.
//
// Every vector kernel is written once, over 16 fp32 lanes (layers/simd.h), and compiled once per
// instruction set; the path is chosen when the process starts. All paths do the same operations in
// the same order (fused multiply-adds, 16 lanes, one horizontal tree), so their results are equal
// bit for bit, to each other and to the plain loops in namespace reference. The exception is
// avx512_bf16: with dtype bfloat16 it multiplies bf16 by bf16 (layers/linear_dot.h), twice as fast
// and with bits of its own.
#pragma once

#include <span>

namespace troupe::layers {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// "scalar", "avx2", "avx512", "avx512_bf16": the names in reports and in TROUPE_ISA.
const char* isa_name(Isa isa);

// The paths this machine can run, slowest first; kScalar is always among them.
std::span<const Isa> supported_isas();

// The path in use: the last of supported_isas(), or what the environment variable TROUPE_ISA names.
// Throws UserError (exit 2) when TROUPE_ISA names no path, or one that this machine lacks.
Isa active_isa();

// For tests and benchmarks: switches the path of the whole process. Not while kernels run.
void force_isa(Isa isa);

}  // namespace troupe::layers
