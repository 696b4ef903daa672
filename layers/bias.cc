#include "layers/bias.h"

namespace troupe::layers {

void add_bias(Matrix<float> y, std::span<const float> bias, Rounding rounding) {
  TROUPE_CHECK(y.cols == std::ssize(bias), "{} outputs, a bias of {}", y.cols, bias.size());
  for (int64_t t = 0; t < y.rows; ++t) {
    float* row = y.row(t);
    if (rounding == Rounding::kBf16) {
      for (int64_t n = 0; n < y.cols; ++n) row[n] = round_to_bf16(row[n] + bias[n]);
    } else {
      for (int64_t n = 0; n < y.cols; ++n) row[n] += bias[n];
    }
  }
}

}  // namespace troupe::layers
