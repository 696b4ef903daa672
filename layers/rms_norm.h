// layers/rms_norm.h: root-mean-square normalisation (Zhang and Sennrich, 2019).
#pragma once

#include <span>

#include "base/matrix.h"
#include "layers/rounding.h"

namespace troupe::layers {

// y[t][i] = round(weight[i] * (x[t][i] / sqrt(mean_i(x[t][i]^2) + eps)))
// The mean is over 16 lanes (element i in lane i mod 16, ascending), then one tree; fp32.
//   x [tokens, width]   weight [width]   y [tokens, width] out, may be x itself
void rms_norm(Matrix<const float> x, std::span<const float> weight, float eps, Matrix<float> y,
              Rounding rounding);

namespace reference {
void rms_norm(Matrix<const float> x, std::span<const float> weight, float eps, Matrix<float> y,
              Rounding rounding);
}

}  // namespace troupe::layers
