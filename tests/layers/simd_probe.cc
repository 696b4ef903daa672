// Compiled once per instruction set, with TROUPE_ISA_NAMESPACE set by CMake.
#include "simd_probe.h"

#include "layers/simd.h"

namespace troupe::layers::TROUPE_ISA_NAMESPACE {
namespace {

template <F32x16 (*kOperation)(F32x16, F32x16)>
void binary(const float* a, const float* b, float* out) {
  store(out, kOperation(load(a), load(b)));
}

template <class Element>
void first_lanes_of(const Element* a, int64_t n, Element* all, Element* first) {
  const F32x16 v = load_first(a, n);
  store(all, v);
  store_first(first, v, n);
}

void fused(const float* a, const float* b, const float* c, float* out) {
  store(out, fma(load(a), load(b), load(c)));
}
void exp_of(const float* a, float* out) { store(out, exp(load(a))); }
void rounded(const float* a, float* out) { store(out, round_to_bf16(load(a))); }
float sum_of(const float* a) { return reduce_add(load(a)); }
float greatest_of(const float* a) { return reduce_max(load(a)); }
void fp8_of(const uint8_t* codes, float* out) { store(out, load_fp8(codes)); }
void widened(const Bf16* a, float* out) { store(out, load(a)); }
void narrowed(const float* a, Bf16* out) { store(out, load(a)); }

}  // namespace

const SimdProbe kProbe{
    .add = binary<add>,
    .sub = binary<sub>,
    .mul = binary<mul>,
    .div = binary<div>,
    .max = binary<max>,
    .min = binary<min>,
    .fma = fused,
    .exp = exp_of,
    .round_to_bf16 = rounded,
    .reduce_add = sum_of,
    .reduce_max = greatest_of,
    .fp8 = fp8_of,
    .widen = widened,
    .narrow = narrowed,
    .first_floats = first_lanes_of<float>,
    .first_bf16s = first_lanes_of<Bf16>,
};

}  // namespace troupe::layers::TROUPE_ISA_NAMESPACE
