#include "layers/bias.h"

#include "layers/team.h"

namespace troupe::layers {

void add_bias(Matrix<float> y, std::span<const float> bias, Rounding rounding) {
  TROUPE_CHECK(y.cols == std::ssize(bias), "{} outputs, a bias of {}", y.cols, bias.size());
  parallel_for(y.rows, row_grain(y.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = y.row(t);
      if (rounding == Rounding::kBf16) {
        for (int64_t n = 0; n < y.cols; ++n) row[n] = round_to_bf16(row[n] + bias[n]);
      } else {
        for (int64_t n = 0; n < y.cols; ++n) row[n] += bias[n];
      }
    }
  });
}

}  // namespace troupe::layers
