// layers/peak.h: what the machine itself can do, measured: the roofs that a run is held against.
#pragma once

#include <cstddef>
#include <span>

namespace troupe::layers {

// What the inner loop of a product is made of.
//   kF32    fused multiply-adds of fp32, with the vectors of active_isa()
//   kBf16   vdpbf16ps: pairs of bf16, summed in fp32
//   kInt8   vpdpbusd: quads of int8, summed in int32
enum class Arithmetic { kF32, kBf16, kInt8 };
inline constexpr int kNumArithmetics = 3;
const char* arithmetic_name(Arithmetic arithmetic);  // "fp32", "bf16", "int8"

// What weights of that arithmetic are at best computed with on active_isa(): itself, or kF32 where
// the machine or the path lacks its instruction.
Arithmetic best_arithmetic(Arithmetic arithmetic);

// Bytes per second that the threads of the current team read together: the median over whole
// passes. `memory` should be much larger than the caches, a multiple of 4 KiB, and hold zeros or
// other floats that are no trouble to add.
double measure_read_bandwidth(std::span<const std::byte> memory, double seconds);

// Multiplications and additions per second that they do in registers alone: the best of several
// tries. Of best_arithmetic(arithmetic).
double measure_peak(Arithmetic arithmetic, double seconds);

}  // namespace troupe::layers
