#include "layers/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <numbers>
#include <random>
#include <vector>

#include "base/bf16.h"

namespace troupe::layers {
namespace {

// DeepSeek-V3's config.json.
constexpr YarnConfig kDeepSeekV3{.factor = 40,
                                 .beta_fast = 32,
                                 .beta_slow = 1,
                                 .mscale = 1,
                                 .mscale_all_dim = 1,
                                 .original_max_position_embeddings = 4096};

// precompute_freqs_cis of DeepSeek-V3's inference/model.py, line by line, in double.
std::vector<double> deepseek_frequencies(int dim, double base, const YarnConfig& yarn) {
  const double max_seq_len = static_cast<double>(yarn.original_max_position_embeddings);
  const auto find_correction_dim = [&](double num_rotations) {
    return dim * std::log(max_seq_len / (num_rotations * 2 * std::numbers::pi)) /
           (2 * std::log(base));
  };
  double min = std::max(std::floor(find_correction_dim(yarn.beta_fast)), 0.0);
  double max = std::min(std::ceil(find_correction_dim(yarn.beta_slow)), double(dim - 1));
  if (min == max) max += 0.001;
  std::vector<double> freqs;
  for (int i = 0; i < dim / 2; ++i) {
    const double freq = 1.0 / std::pow(base, double(2 * i) / dim);
    const double smooth = 1 - std::min(1.0, std::max(0.0, (i - min) / (max - min)));
    freqs.push_back(freq / yarn.factor * (1 - smooth) + freq * smooth);
  }
  return freqs;
}

struct Angles {
  std::vector<float> cos, sin;  // [tokens, dim / 2]
  int64_t pairs;

  Matrix<const float> cos_matrix() const { return view(cos); }
  Matrix<const float> sin_matrix() const { return view(sin); }
  Matrix<const float> view(const std::vector<float>& values) const {
    return {values.data(), static_cast<int64_t>(values.size()) / pairs, pairs};
  }
};

Angles angles(const Rope& rope, const std::vector<int32_t>& positions) {
  const int64_t tokens = static_cast<int64_t>(positions.size());
  const int64_t pairs = rope.dim() / 2;
  Angles got{std::vector<float>(tokens * pairs), std::vector<float>(tokens * pairs), pairs};
  rope.angles(positions, {got.cos.data(), tokens, pairs}, {got.sin.data(), tokens, pairs});
  return got;
}

std::vector<float> random_values(size_t n) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-2, 2);
  std::vector<float> values(n);
  for (float& value : values) value = uniform(random);
  return values;
}

TEST(Rope, WithoutScalingAnglesArePositionTimesPowersOfTheta) {
  const Rope rope(8, 10000, std::nullopt);

  const Angles got = angles(rope, {0, 3, 100000});

  for (int t = 0; t < 3; ++t) {
    const double position = std::vector<double>{0, 3, 100000}[t];
    for (int i = 0; i < 4; ++i) {
      const double angle = position * std::vector<double>{1, 0.1, 0.01, 0.001}[i];
      EXPECT_NEAR(got.cos[t * 4 + i], std::cos(angle), 1e-7);
      EXPECT_NEAR(got.sin[t * 4 + i], std::sin(angle), 1e-7);
    }
  }
  EXPECT_EQ(rope.softmax_scale_factor(), 1);
}

TEST(Rope, YarnFrequenciesFollowDeepSeek) {
  YarnConfig short_original = kDeepSeekV3;  // the ramp begins and ends outside of [0, dim)
  short_original.original_max_position_embeddings = 64;
  YarnConfig steep = kDeepSeekV3;  // the ramp is one point wide
  steep.beta_fast = steep.beta_slow = 4096 / (2 * std::numbers::pi);
  YarnConfig wide = kDeepSeekV3;  // the ramp would end past dim - 1
  wide.original_max_position_embeddings = 1 << 30;
  wide.beta_fast = 1e7;
  for (const YarnConfig& yarn : {kDeepSeekV3, short_original, steep, wide}) {
    for (const int dim : {8, 64}) {
      const std::vector<double> expected = deepseek_frequencies(dim, 10000, yarn);

      const Angles got = angles(Rope(dim, 10000, yarn), {1, 5000});

      for (int i = 0; i < dim; ++i) {
        const double angle = (i < dim / 2 ? 1 : 5000) * expected[i % (dim / 2)];
        EXPECT_NEAR(got.cos[i], std::cos(angle), 1e-7) << "dim " << dim << " pair " << i;
        EXPECT_NEAR(got.sin[i], std::sin(angle), 1e-7) << "dim " << dim << " pair " << i;
      }
    }
  }
}

TEST(Rope, YarnKeepsFastWavesAndStretchesSlowOnes) {
  const Angles plain = angles(Rope(64, 10000, std::nullopt), {1});

  const Angles scaled = angles(Rope(64, 10000, kDeepSeekV3), {1, 40});

  EXPECT_EQ(scaled.sin[0], plain.sin[0]);
  EXPECT_EQ(scaled.sin[10], plain.sin[10]);  // the ramp begins at floor(10.5)
  EXPECT_LT(scaled.sin[12], plain.sin[12]);
  EXPECT_FLOAT_EQ(scaled.sin[32 + 31], plain.sin[31]);  // position 40 as position 1
}

// RotaryEmbedding._compute_concentration_and_inv_freq of openai/gpt-oss, gpt_oss/torch/model.py,
// with GPT-OSS's numbers: the ramp between 8.09 and 17.4 of 32, not rounded, cos and sin stretched.
TEST(Rope, UntruncatedYarnIsGptOss) {
  const YarnConfig yarn{.factor = 32, .original_max_position_embeddings = 4096, .truncate = false};
  const double base = 150000, concentration = 0.1 * std::log(32.0) + 1;
  const double low = 32 * std::log(4096 / (32 * 2 * std::numbers::pi)) / std::log(base);
  const double high = 32 * std::log(4096 / (1 * 2 * std::numbers::pi)) / std::log(base);

  const Rope rope(64, base, yarn);
  const Angles got = angles(rope, {1});

  for (int i = 0; i < 32; ++i) {
    const double freq = std::pow(base, i / 32.0);
    const double mask = 1 - std::clamp((i - low) / (high - low), 0.0, 1.0);
    const double inv_freq = 1 / (32 * freq) * (1 - mask) + 1 / freq * mask;
    EXPECT_NEAR(got.cos[i], std::cos(inv_freq) * concentration, 1e-7) << i;
    EXPECT_NEAR(got.sin[i], std::sin(inv_freq) * concentration, 1e-7) << i;
  }
  EXPECT_EQ(rope.softmax_scale_factor(), 1);
}

TEST(Rope, YarnScalesTheSoftmaxByTheSquaredMscale) {
  const double mscale = 0.1 * std::log(40.0) + 1;

  EXPECT_DOUBLE_EQ(Rope(64, 10000, kDeepSeekV3).softmax_scale_factor(), mscale * mscale);

  YarnConfig no_all_dim = kDeepSeekV3;
  no_all_dim.mscale_all_dim = 0;
  EXPECT_EQ(Rope(64, 10000, no_all_dim).softmax_scale_factor(), 1);
  YarnConfig no_stretch = kDeepSeekV3;
  no_stretch.factor = 1;
  EXPECT_EQ(Rope(64, 10000, no_stretch).softmax_scale_factor(), 1);
}

TEST(Rope, AmplitudeIsTheRatioOfTheTwoMscales) {
  YarnConfig yarn = kDeepSeekV3;
  yarn.mscale = 1;
  yarn.mscale_all_dim = 0.707;
  const double ratio = (0.1 * std::log(40.0) + 1) / (0.0707 * std::log(40.0) + 1);

  const Angles got = angles(Rope(64, 10000, yarn), {123});
  const Angles equal_mscales = angles(Rope(64, 10000, kDeepSeekV3), {123});

  for (int i = 0; i < 32; ++i) {
    EXPECT_NEAR(std::hypot(got.cos[i], got.sin[i]), ratio, 1e-6);
    EXPECT_NEAR(std::hypot(equal_mscales.cos[i], equal_mscales.sin[i]), 1, 1e-6);
  }
}

TEST(ApplyRope, MultipliesPairsAsComplexNumbers) {
  const Rope rope(16, 10000, std::nullopt);
  const std::vector<int32_t> positions{0, 1, 77};
  const Angles turn = angles(rope, positions);
  const std::vector<float> before = random_values(3 * 32);  // two vectors per token
  std::vector<float> x = before;

  apply_rope({x.data(), 3, 32}, 2, 16, turn.cos_matrix(), turn.sin_matrix(), Rounding::kNone);

  for (int i = 0; i < 3 * 32; i += 2) {
    const double frequency = std::pow(10000.0, -(i % 16) / 16.0);
    const std::complex<double> expected = std::complex<double>(before[i], before[i + 1]) *
                                          std::polar(1.0, positions[i / 32] * frequency);
    EXPECT_NEAR(x[i], expected.real(), 1e-6) << i;
    EXPECT_NEAR(x[i + 1], expected.imag(), 1e-6) << i;
  }
}

// _apply_rotary_emb of gpt_oss/torch/model.py, and rotate_half of Hugging Face's models.
TEST(ApplyRope, MayPairTheHalvesOfAVector) {
  const Angles turn = angles(Rope(16, 10000, std::nullopt), {3, 40});
  const std::vector<float> before = random_values(2 * 32);  // two vectors per token
  std::vector<float> x = before;

  apply_rope({x.data(), 2, 32}, 2, 16, turn.cos_matrix(), turn.sin_matrix(), Rounding::kNone,
             RopePairs::kHalves);

  for (int v = 0; v < 4; ++v) {
    for (int i = 0; i < 8; ++i) {
      const double frequency = std::pow(10000.0, -i / 8.0);
      const std::complex<double> expected =
          std::complex<double>(before[v * 16 + i], before[v * 16 + 8 + i]) *
          std::polar(1.0, (v < 2 ? 3 : 40) * frequency);
      EXPECT_NEAR(x[v * 16 + i], expected.real(), 2e-6) << v << " " << i;
      EXPECT_NEAR(x[v * 16 + 8 + i], expected.imag(), 2e-6) << v << " " << i;
    }
  }
}

TEST(ApplyRope, LeavesAloneWhatLiesBetweenTheVectors) {
  constexpr int kHeads = 3, kNope = 5, kRope = 4, kHead = kNope + kRope;
  const Angles turn = angles(Rope(kRope, 10000, std::nullopt), {9, 10});
  const std::vector<float> before = random_values(2 * kHeads * kHead);
  std::vector<float> q = before;

  apply_rope({q.data() + kNope, 2, kHeads * kHead - kNope, kHeads * kHead}, kHeads, kHead,
             turn.cos_matrix(), turn.sin_matrix(), Rounding::kNone);

  for (size_t i = 0; i < q.size(); ++i) {
    const bool rotated = i % kHead >= kNope;
    EXPECT_EQ(q[i] != before[i], rotated) << i;
  }
}

TEST(ApplyRope, RoundsOnceAtTheEnd) {
  const Angles turn = angles(Rope(8, 10000, std::nullopt), {5});
  std::vector<float> exact = random_values(8);
  std::vector<float> rounded = exact;

  apply_rope({exact.data(), 1, 8}, 1, 8, turn.cos_matrix(), turn.sin_matrix(), Rounding::kNone);
  apply_rope({rounded.data(), 1, 8}, 1, 8, turn.cos_matrix(), turn.sin_matrix(), Rounding::kBf16);

  for (int i = 0; i < 8; ++i) EXPECT_EQ(rounded[i], round_to_bf16(exact[i]));
}

TEST(ApplyRope, RefusesVectorsThatDoNotFitTheirRow) {
  const Angles turn = angles(Rope(8, 10000, std::nullopt), {5});
  std::vector<float> x(16);

  EXPECT_THROW(
      apply_rope({x.data(), 1, 16}, 2, 9, turn.cos_matrix(), turn.sin_matrix(), Rounding::kNone),
      std::logic_error);
}

}  // namespace
}  // namespace troupe::layers
