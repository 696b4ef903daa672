#include "layers/exp.h"

#define TROUPE_ISA_NAMESPACE scalar
#include "layers/simd.h"

namespace troupe::layers {

float exp_f32(float x) { return scalar::exp(scalar::Lanes<1>{{x}}).lane[0]; }

}  // namespace troupe::layers
