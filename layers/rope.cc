#include "layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/bf16.h"
#include "base/error.h"
#include "layers/team.h"

namespace troupe::layers {
namespace {

double yarn_mscale(double scale, double mscale) {
  return scale <= 1 ? 1 : 0.1 * mscale * std::log(scale) + 1;
}

// The (fractional) dimension whose wave turns `num_rotations` times over the original length.
double correction_dim(double num_rotations, int dim, double theta, const YarnConfig& yarn) {
  const double length = static_cast<double>(yarn.original_max_position_embeddings);
  return dim * std::log(length / (num_rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

// How much of each frequency is interpolated: 0 below `low`, 1 from `high` on.
std::vector<double> linear_ramp(double low, double high, int size) {
  if (low == high) high += 0.001;
  std::vector<double> ramp(size);
  for (int i = 0; i < size; ++i) ramp[i] = std::clamp((i - low) / (high - low), 0.0, 1.0);
  return ramp;
}

void interpolate(std::vector<double>& frequencies, int dim, double theta, const YarnConfig& yarn) {
  double low = correction_dim(yarn.beta_fast, dim, theta, yarn);
  double high = correction_dim(yarn.beta_slow, dim, theta, yarn);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  const std::vector<double> ramp = linear_ramp(low, high, dim / 2);
  for (int i = 0; i < dim / 2; ++i) {
    const double smooth = 1 - ramp[i];
    frequencies[i] = frequencies[i] / yarn.factor * (1 - smooth) + frequencies[i] * smooth;
  }
}

// Element a of pair i is x[a_step * i], element b lies b_offset behind it.
struct PairPlaces {
  int64_t a_step, b_offset;
};

void rotate(float* x, const float* cos, const float* sin, int64_t num_pairs, PairPlaces places,
            Rounding rounding) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    float& a = x[places.a_step * i];
    float& b = x[places.a_step * i + places.b_offset];
    const float real = a * cos[i] - b * sin[i];
    const float imaginary = a * sin[i] + b * cos[i];
    a = rounding == Rounding::kBf16 ? round_to_bf16(real) : real;
    b = rounding == Rounding::kBf16 ? round_to_bf16(imaginary) : imaginary;
  }
}

}  // namespace

Rope::Rope(int dim, double theta, const std::optional<YarnConfig>& yarn)
    : dim_(dim), softmax_scale_factor_(1), amplitude_(1), frequencies_(dim / 2) {
  TROUPE_CHECK(dim > 0 && dim % 2 == 0 && theta > 1, "dim {} theta {}", dim, theta);
  for (int i = 0; i < dim / 2; ++i) frequencies_[i] = 1 / std::pow(theta, 2.0 * i / dim);
  if (!yarn) return;

  TROUPE_CHECK(yarn->factor > 0 && yarn->beta_fast > 0 && yarn->beta_slow > 0 &&
                   yarn->original_max_position_embeddings > 0,
               "factor {} beta_fast {} beta_slow {} original_max_position_embeddings {}",
               yarn->factor, yarn->beta_fast, yarn->beta_slow,
               yarn->original_max_position_embeddings);
  interpolate(frequencies_, dim, theta, *yarn);
  const double mscale_all_dim = yarn_mscale(yarn->factor, yarn->mscale_all_dim);
  amplitude_ = yarn_mscale(yarn->factor, yarn->mscale) / mscale_all_dim;
  softmax_scale_factor_ = mscale_all_dim * mscale_all_dim;
}

void Rope::angles(std::span<const int32_t> positions, Matrix<float> cos, Matrix<float> sin) const {
  const int64_t tokens = static_cast<int64_t>(positions.size());
  TROUPE_CHECK(
      cos.rows == tokens && sin.rows == tokens && cos.cols == dim_ / 2 && sin.cols == dim_ / 2,
      "cos [{}, {}], sin [{}, {}], {} positions of dim {}", cos.rows, cos.cols, sin.rows, sin.cols,
      tokens, dim_);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int i = 0; i < dim_ / 2; ++i) {
      const double angle = positions[t] * frequencies_[i];
      cos.row(t)[i] = static_cast<float>(std::cos(angle) * amplitude_);
      sin.row(t)[i] = static_cast<float>(std::sin(angle) * amplitude_);
    }
  }
}

void apply_rope(Matrix<float> x, int vectors_per_token, int64_t vector_stride,
                Matrix<const float> cos, Matrix<const float> sin, Rounding rounding,
                RopePairs pairs) {
  const int64_t last_end = (vectors_per_token - 1) * vector_stride + 2 * cos.cols;
  TROUPE_CHECK(cos.rows == x.rows && sin.rows == x.rows && cos.cols == sin.cols,
               "x has {} tokens, cos [{}, {}], sin [{}, {}]", x.rows, cos.rows, cos.cols, sin.rows,
               sin.cols);
  TROUPE_CHECK(vector_stride >= 2 * cos.cols && last_end <= x.stride,
               "{} vectors of {}, {} apart, in rows {} apart", vectors_per_token, 2 * cos.cols,
               vector_stride, x.stride);
  const PairPlaces places =
      pairs == RopePairs::kAdjacent ? PairPlaces{2, 1} : PairPlaces{1, cos.cols};
  parallel_for(x.rows, row_grain(vectors_per_token * cos.cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int v = 0; v < vectors_per_token; ++v)
        rotate(x.row(t) + v * vector_stride, cos.row(t), sin.row(t), cos.cols, places, rounding);
  });
}

}  // namespace troupe::layers
