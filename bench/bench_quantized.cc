// bench/bench_quantized.cc: how fast int8, int4 and MXFP4 products run on one thread.
//
// Up to 16 rows stream the weights from memory: bytes_per_second is to be read beside read/...,
// which only sums memory. More rows compute: `ops` counts multiplications and additions, to be read
// beside peak, the fastest that vpdpbusd can run. Quantising the inputs is part of what is timed.
// Shapes: gate_up and down of an expert of DeepSeek-V2-Lite and of DeepSeek-V3; down has 16 leaves.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "base/memory.h"
#include "layers/isa.h"
#include "layers/linear.h"

namespace troupe::layers {
namespace {

// Copies of one matrix, so that together they exceed the caches as a model's weights do.
constexpr size_t kColdBytes = size_t{512} << 20;
constexpr int64_t kMostStreamingRows = 64;

void run_linear(benchmark::State& state, WeightType type, int64_t rows, int64_t cols,
                int num_leaves) {
  const int64_t tokens = state.range(0);
  PackedMatrix w = plan_packed(
      type, rows,
      {.k_total = cols, .total_leaves = num_leaves, .first_leaf = 0, .num_leaves = num_leaves});
  const bool is_cold = tokens <= kMostStreamingRows;
  const size_t copies = is_cold ? kColdBytes / w.bytes() : 1;
  const Mapping memory = Mapping::anonymous(copies * w.bytes(), Mapping::Pages::kHuge);
  std::memset(memory.data(), 0x31, memory.size());
  std::minstd_rand random(1);
  std::vector<float> x(tokens * cols);
  for (float& value : x) value = std::uniform_real_distribution<float>(-1, 1)(random);
  std::vector<float> y(tokens * rows);
  InputBuffer buffer;
  size_t i = 0;
  for (auto _ : state) {
    w.data = memory.data() + i++ % copies * w.bytes();
    linear(w, buffer.prepare(w, Matrix<const float>(x.data(), tokens, cols), Rounding::kBf16),
           Matrix<float>(y.data(), tokens, rows), Rounding::kBf16);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(w.bytes()));
  state.counters["ops"] = benchmark::Counter(
      2.0 * static_cast<double>(tokens * rows * cols) * iterations, benchmark::Counter::kIsRate);
  state.SetLabel(isa_name(active_isa()));
}

void bench_read(benchmark::State& state) {
  const Mapping memory = Mapping::anonymous(kColdBytes, Mapping::Pages::kHuge);
  std::memset(memory.data(), 1, memory.size());
  const auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  for (auto _ : state)
    benchmark::DoNotOptimize(std::accumulate(words, words + kColdBytes / 8, uint64_t{0}));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kColdBytes));
}

#if defined(__x86_64__)
// 12 independent chains: more than latency times throughput of any such machine.
__attribute__((target("avx512f,avx512vnni"))) void bench_peak(benchmark::State& state) {
  if (!__builtin_cpu_supports("avx512vnni")) return state.SkipWithError("no AVX-512 VNNI");
  constexpr int kInstructions = 12;
  for (auto _ : state) {
    asm volatile(
        "vpdpbusd %%zmm31, %%zmm31, %%zmm0\n vpdpbusd %%zmm31, %%zmm31, %%zmm1\n"
        "vpdpbusd %%zmm31, %%zmm31, %%zmm2\n vpdpbusd %%zmm31, %%zmm31, %%zmm3\n"
        "vpdpbusd %%zmm31, %%zmm31, %%zmm4\n vpdpbusd %%zmm31, %%zmm31, %%zmm5\n"
        "vpdpbusd %%zmm31, %%zmm31, %%zmm6\n vpdpbusd %%zmm31, %%zmm31, %%zmm7\n"
        "vpdpbusd %%zmm31, %%zmm31, %%zmm8\n vpdpbusd %%zmm31, %%zmm31, %%zmm9\n"
        "vpdpbusd %%zmm31, %%zmm31, %%zmm10\n vpdpbusd %%zmm31, %%zmm31, %%zmm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11");
  }
  state.counters["ops"] = benchmark::Counter(
      128.0 * kInstructions * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(bench_peak);
#endif

void row_counts(benchmark::internal::Benchmark* b) {
  for (const int tokens : {1, 2, 4, 8, 16, 48, 49, 512}) b->Arg(tokens);
  b->UseRealTime();
}

BENCHMARK(bench_read)->UseRealTime();
BENCHMARK_CAPTURE(run_linear, int8_2816x2048, WeightType::kInt8, 2816, 2048, 1)->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, int8_2048x1408, WeightType::kInt8, 2048, 1408, kTpLeaves)
    ->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, int4_2816x2048, WeightType::kInt4, 2816, 2048, 1)->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, int4_2048x1408, WeightType::kInt4, 2048, 1408, kTpLeaves)
    ->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, mxfp4_2816x2048, WeightType::kMxfp4, 2816, 2048, 1)
    ->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, mxfp4_2048x1408, WeightType::kMxfp4, 2048, 1408, kTpLeaves)
    ->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, int8_4096x7168, WeightType::kInt8, 4096, 7168, 1)->Apply(row_counts);
BENCHMARK_CAPTURE(run_linear, int8_7168x2048, WeightType::kInt8, 7168, 2048, kTpLeaves)
    ->Apply(row_counts);

}  // namespace
}  // namespace troupe::layers

BENCHMARK_MAIN();
