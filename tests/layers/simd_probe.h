// tests/layers/simd_probe.h: the operations of layers/simd.h, compiled for one instruction set
// (simd_probe.cc) and called from code that is not.
#pragma once

#include <cstdint>

#include "base/bf16.h"

namespace troupe::layers {

// Every argument but `n` points to 16 elements.
struct SimdProbe {
  void (*add)(const float* a, const float* b, float* out);
  void (*sub)(const float* a, const float* b, float* out);
  void (*mul)(const float* a, const float* b, float* out);
  void (*div)(const float* a, const float* b, float* out);
  void (*max)(const float* a, const float* b, float* out);
  void (*min)(const float* a, const float* b, float* out);
  void (*fma)(const float* a, const float* b, const float* c, float* out);
  void (*exp)(const float* a, float* out);
  void (*round_to_bf16)(const float* a, float* out);
  float (*reduce_add)(const float* a);
  float (*reduce_max)(const float* a);
  void (*fp8)(const uint8_t* codes, float* out);  // in units of kFp8Unit
  void (*widen)(const Bf16* a, float* out);
  void (*narrow)(const float* a, Bf16* out);
  // load_first, then store and store_first.
  void (*first_floats)(const float* a, int64_t n, float* all, float* first);
  void (*first_bf16s)(const Bf16* a, int64_t n, Bf16* all, Bf16* first);
};

namespace scalar {
extern const SimdProbe kProbe;
}
namespace avx2 {
extern const SimdProbe kProbe;
}
namespace avx512 {
extern const SimdProbe kProbe;
}

}  // namespace troupe::layers
