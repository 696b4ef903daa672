#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "every_isa.h"
#include "layers/exp.h"
#include "layers/linear.h"
#include "simd_probe.h"

namespace troupe::layers {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const SimdProbe& probe() {
#if defined(__x86_64__)
  if (active_isa() >= Isa::kAvx512) return avx512::kProbe;
  if (active_isa() == Isa::kAvx2) return avx2::kProbe;
#endif
  return scalar::kProbe;
}

using Lanes = std::array<float, 16>;

// Any bit pattern: every exponent, subnormals, infinities, NaN.
Lanes random_bits(std::mt19937& random) {
  Lanes lanes;
  for (float& lane : lanes) lane = std::bit_cast<float>(static_cast<uint32_t>(random()));
  return lanes;
}

void expect_lanes(const Lanes& got, const Lanes& want) {
  expect_same_bits(Matrix<const float>(got.data(), 1, 16), Matrix<const float>(want.data(), 1, 16));
}

template <class Want>
void expect_binary(void (*operation)(const float*, const float*, float*), const Lanes& a,
                   const Lanes& b, const Want& want_lane) {
  Lanes got, want;
  operation(a.data(), b.data(), got.data());
  for (int i = 0; i < 16; ++i) want[i] = want_lane(a[i], b[i]);
  expect_lanes(got, want);
}

TEST(Simd, RoundsEachOperationOnceOnAnyBits) {
  on_every_isa([] {
    std::mt19937 random(1);
    for (int round = 0; round < 2000; ++round) {
      const Lanes a = random_bits(random), b = random_bits(random), c = random_bits(random);
      expect_binary(probe().add, a, b, [](float x, float y) { return x + y; });
      expect_binary(probe().sub, a, b, [](float x, float y) { return x - y; });
      expect_binary(probe().mul, a, b, [](float x, float y) { return x * y; });
      expect_binary(probe().div, a, b, [](float x, float y) { return x / y; });
      expect_binary(probe().max, a, b, [](float x, float y) { return x > y ? x : y; });
      expect_binary(probe().min, a, b, [](float x, float y) { return x < y ? x : y; });
      Lanes got, want;
      probe().fma(a.data(), b.data(), c.data(), got.data());
      for (int i = 0; i < 16; ++i) want[i] = std::fma(a[i], b[i], c[i]);
      expect_lanes(got, want);
    }
  });
}

TEST(Simd, FusesSoThatNoProductIsRounded) {
  const float x = 1.0f + 0x1p-23f;
  Lanes a, c, got;
  a.fill(x);
  c.fill(-(1.0f + 0x1p-22f));  // x * x rounded

  on_every_isa([&] {
    probe().fma(a.data(), a.data(), c.data(), got.data());

    EXPECT_EQ(got[0], 0x1p-46f);
  });
}

TEST(Simd, SumsLanesByTheTreeThatHalvesTheDistance) {
  // In lane order the first sum would swallow the ones; pairs of distance 8 cancel 1e8 first.
  const Lanes a{1e8f, 1, 2, 3, 4, 5, 6, 7, -1e8f, 9, 10, 11, 12, 13, 14, 15};

  on_every_isa([&] { EXPECT_EQ(probe().reduce_add(a.data()), 112.0f); });
}

TEST(Simd, SumsLanesInOneOrderOnEveryPath) {
  std::mt19937 random(2);
  for (int round = 0; round < 1000; ++round) {
    const std::vector<float> a = normal_floats(16, round);
    float want[16];
    std::copy(a.begin(), a.end(), want);
    for (const int distance : {8, 4, 2, 1})
      for (int i = 0; i < distance; ++i) want[i] += want[i + distance];

    on_every_isa([&] { ASSERT_EQ(probe().reduce_add(a.data()), want[0]); });
  }
}

TEST(Simd, FindsTheGreatestLaneWhereverItLies) {
  for (int lane = 0; lane < 16; ++lane) {
    Lanes a;
    a.fill(-7);
    a[lane] = -3;
    on_every_isa([&] { EXPECT_EQ(probe().reduce_max(a.data()), -3.0f); });
  }
}

TEST(Simd, RoundsToBfloat16LikeBf16H) {
  on_every_isa([] {
    std::mt19937 random(3);
    for (int round = 0; round < 5000; ++round) {
      Lanes a = random_bits(random), got, want;
      a[0] = std::bit_cast<float>(0x7f800001u);  // a NaN whose payload would be cut off
      a[1] = std::bit_cast<float>(0x3f808000u);  // a tie, even below
      a[2] = std::bit_cast<float>(0x3f818000u);  // a tie, even above
      a[3] = std::numeric_limits<float>::max();  // rounds to infinity
      for (int i = 0; i < 16; ++i) want[i] = round_to_bf16(a[i]);

      probe().round_to_bf16(a.data(), got.data());
      expect_lanes(got, want);

      Bf16 narrow[16];
      probe().narrow(a.data(), narrow);
      probe().widen(narrow, got.data());
      expect_lanes(got, want);
    }
  });
}

TEST(Simd, LoadsAndStoresTheFirstLanesOnly) {
  on_every_isa([] {
    for (int64_t n = 0; n <= 16; ++n) {
      // Exactly n elements: a sanitizer sees a read or write beyond them.
      std::vector<float> a(n, 3.0f), first(n, -1.0f);
      std::vector<Bf16> b(n, to_bf16(3.0f)), b_first(n, to_bf16(-1.0f));
      Lanes all;
      std::array<Bf16, 16> b_all;

      probe().first_floats(a.data(), n, all.data(), first.data());
      probe().first_bf16s(b.data(), n, b_all.data(), b_first.data());

      for (int i = 0; i < 16; ++i) EXPECT_EQ(all[i], i < n ? 3.0f : 0.0f);
      for (int i = 0; i < 16; ++i) EXPECT_EQ(to_float(b_all[i]), i < n ? 3.0f : 0.0f);
      EXPECT_EQ(first, a);
      for (int64_t i = 0; i < n; ++i) EXPECT_EQ(to_float(b_first[i]), 3.0f);
    }
  });
}

TEST(Simd, LeavesMemoryAfterTheFirstLanesAlone) {
  on_every_isa([] {
    for (int64_t n = 0; n < 16; ++n) {
      Lanes a, all, first;
      std::array<Bf16, 16> b, b_all, b_first;
      a.fill(3.0f);
      first.fill(-1.0f);
      b.fill(to_bf16(3.0f));
      b_first.fill(to_bf16(-1.0f));

      probe().first_floats(a.data(), n, all.data(), first.data());
      probe().first_bf16s(b.data(), n, b_all.data(), b_first.data());

      for (int64_t i = n; i < 16; ++i) EXPECT_EQ(first[i], -1.0f);
      for (int64_t i = n; i < 16; ++i) EXPECT_EQ(to_float(b_first[i]), -1.0f);
    }
  });
}

TEST(Simd, ReadsEveryFp8CodeExactly) {
  on_every_isa([] {
    for (int first = 0; first < 256; first += 16) {
      uint8_t codes[16];
      for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(first + i);
      Lanes got;
      probe().fp8(codes, got.data());
      for (int i = 0; i < 16; ++i) {
        if ((codes[i] & 0x7f) == 0x7f)
          EXPECT_EQ(std::fabs(got[i]), std::ldexp(480.0f, -120));
        else
          EXPECT_TRUE(same_bits(got[i], std::ldexp(fp8_e4m3_to_float(codes[i]), -120)))
              << first + i;
      }
    }
  });
}

std::vector<float> exp_arguments() {
  std::vector<float> arguments;
  for (float x = -90; x < 90; x += 0.00731f) arguments.push_back(x);
  for (float x = 1e-30f; x < 1; x *= 1.1f) arguments.insert(arguments.end(), {x, -x});
  for (float x : {0.0f, 87.5f, 88.0f, 88.3f, 87.0f, 87.3f, 87.6f, 87.7f, 1e4f, 3e38f, kInf})
    arguments.insert(arguments.end(), {x, -x});
  arguments.push_back(kNan);
  arguments.resize((arguments.size() + 15) / 16 * 16, 1.0f);
  return arguments;
}

TEST(Exp, IsOneFunctionOnEveryPath) {
  const std::vector<float> x = exp_arguments();
  on_every_isa([&] {
    for (size_t i = 0; i < x.size(); i += 16) {
      Lanes got;
      probe().exp(&x[i], got.data());
      for (int lane = 0; lane < 16; ++lane)
        ASSERT_TRUE(same_bits(got[lane], exp_f32(x[i + lane]))) << x[i + lane];
    }
  });
}

TEST(Exp, IsWithinTwoUnitsInTheLastPlace) {
  for (const float x : exp_arguments()) {
    if (!(x > -87.33f && x < 88.37f)) continue;  // results that are normal numbers
    const double want = std::exp(static_cast<double>(x));
    const float nearest = static_cast<float>(want);
    const double ulp = std::nextafter(nearest, kInf) - nearest;
    ASSERT_LE(std::fabs(exp_f32(x) - want), 2 * ulp) << x;
  }
}

TEST(Exp, EndsInZeroAndStopsShortOfInfinity) {
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  for (const float x : {-88.0f, -100.0f, -1e30f, -kInf}) EXPECT_EQ(exp_f32(x), 0.0f) << x;
  for (const float x : {89.0f, 1e30f, kInf}) {
    EXPECT_GT(exp_f32(x), 2e38f) << x;
    EXPECT_LT(exp_f32(x), kInf) << x;
  }
  EXPECT_TRUE(std::isnan(exp_f32(kNan)));
}

}  // namespace
}  // namespace troupe::layers
