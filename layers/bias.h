// layers/bias.h: the constant of an affine map.
#pragma once

#include <span>

#include "base/matrix.h"
#include "layers/linear.h"

namespace troupe::layers {

// y[t][n] = round(y[t][n] + bias[n])      y [tokens, outputs], in place; bias [outputs]
void add_bias(Matrix<float> y, std::span<const float> bias, Rounding rounding);

}  // namespace troupe::layers
