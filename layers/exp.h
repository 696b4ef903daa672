// layers/exp.h: the exponential of layers/simd.h for one value.
#pragma once

namespace troupe::layers {

// Equal bit for bit to a lane of exp(F32x16) on every instruction set.
float exp_f32(float x);

}  // namespace troupe::layers
