#include "layers/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "base/error.h"
#include "layers/isa.h"
#include "layers/kernels.h"
#include "layers/team.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace troupe::layers {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kPagesPerPiece = 512;  // 2 MiB: several pieces for each thread of a pass

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

#if defined(__x86_64__)
constexpr int kChains = 16;

__attribute__((target("avx512f,avx512bf16"))) int64_t bf16_chains(int64_t rounds, float* sum) {
  __m512 sums[kChains];  // all different, or the compiler would make them one
  for (int j = 0; j < kChains; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  const __m512 halves = _mm512_set1_ps(0.5f);
  const __m512bh operand = _mm512_cvtne2ps_pbh(halves, halves);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_dpbf16_ps(sums[j], operand, operand);
  }
  for (int j = 1; j < kChains; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  float lanes[16];
  _mm512_storeu_ps(lanes, sums[0]);
  *sum = lanes[0];
  return rounds * kChains * 32 * 2;
}

__attribute__((target("avx512f,avx512vnni"))) int64_t int8_chains(int64_t rounds, float* sum) {
  __m512i sums[kChains];
  for (int j = 0; j < kChains; ++j) sums[j] = _mm512_set1_epi32(j);
  const __m512i operand = _mm512_set1_epi32(0x01010101);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], operand, operand);
  }
  for (int j = 1; j < kChains; ++j) sums[0] = _mm512_add_epi32(sums[0], sums[j]);
  int32_t lanes[16];
  _mm512_storeu_si512(lanes, sums[0]);
  *sum = static_cast<float>(lanes[0]);
  return rounds * kChains * 64 * 2;
}
#endif

int64_t compute(Arithmetic arithmetic, int64_t rounds, float* sum) {
#if defined(__x86_64__)
  if (arithmetic == Arithmetic::kBf16) return bf16_chains(rounds, sum);
  if (arithmetic == Arithmetic::kInt8) return int8_chains(rounds, sum);
#endif
  return kernels().fma_chains(rounds, sum);
}

int team_size() { return current_team() == nullptr ? 1 : current_team()->size(); }

}  // namespace

const char* arithmetic_name(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kF32:
      return "fp32";
    case Arithmetic::kBf16:
      return "bf16";
    case Arithmetic::kInt8:
      return "int8";
  }
  TROUPE_CHECK(false, "arithmetic {}", static_cast<int>(arithmetic));
}

Arithmetic best_arithmetic(Arithmetic arithmetic) {
#if defined(__x86_64__)
  if (active_isa() == Isa::kAvx512 || active_isa() == Isa::kAvx512Bf16) {
    if (arithmetic == Arithmetic::kBf16 && __builtin_cpu_supports("avx512bf16")) return arithmetic;
    if (arithmetic == Arithmetic::kInt8 && __builtin_cpu_supports("avx512vnni")) return arithmetic;
  }
#endif
  return Arithmetic::kF32;
}

double measure_read_bandwidth(std::span<const std::byte> memory, double seconds) {
  const auto pages = static_cast<int64_t>(memory.size()) / kPage;
  TROUPE_CHECK(pages > 0 && memory.size() % kPage == 0, "{} bytes", memory.size());
  const auto* floats = reinterpret_cast<const float*>(memory.data());
  constexpr int64_t kPageFloats = kPage / static_cast<int64_t>(sizeof(float));
  std::atomic<float> sink{0};
  std::vector<double> rates;
  const auto start = std::chrono::steady_clock::now();
  do {
    const auto pass = std::chrono::steady_clock::now();
    parallel_for(pages, kPagesPerPiece, [&](int64_t begin, int64_t end) {
      const auto count = (end - begin) * kPageFloats;
      sink.store(kernels().read_floats(floats + begin * kPageFloats, count),
                 std::memory_order_relaxed);
    });
    rates.push_back(static_cast<double>(memory.size()) / seconds_since(pass));
  } while (seconds_since(start) < seconds);
  std::ranges::nth_element(rates, rates.begin() + std::ssize(rates) / 2);
  return rates[rates.size() / 2];
}

double measure_peak(Arithmetic arithmetic, double seconds) {
  constexpr int64_t kRounds = 100'000;  // a millisecond or less
  const Arithmetic used = best_arithmetic(arithmetic);
  std::atomic<float> sink{0};
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  do {
    std::atomic<int64_t> operations{0};
    const auto pass = std::chrono::steady_clock::now();
    parallel_for(team_size(), 1, [&](int64_t begin, int64_t end) {
      float sum = 0;
      operations += compute(used, kRounds * (end - begin), &sum);
      sink.store(sum, std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(operations) / seconds_since(pass));
  } while (seconds_since(start) < seconds);
  return best;
}

}  // namespace troupe::layers
