// bench/bench_linear.cc: how fast linear() and pack_rows() run on one thread, in every format.
//
// Few rows stream the weights: bytes_per_second is to be read beside bench_read, which only sums
// memory of the same size. Many rows compute: flops counts multiplications and additions, to be
// read beside bench_fma, bench_dot and bench_dot4, which do nothing else. The weights always come
// from memory, as those of a model do; inputs are prepared in the time measured. dtype is bfloat16,
// but for f32. The instruction set is the best of the machine, or what TROUPE_ISA names. Arguments:
// rows of x, rows of W, inputs, leaves; the shapes are an expert's gate_up and down of
// DeepSeek-V2-Lite, then of V3.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "base/memory.h"
#include "layers/isa.h"
#include "layers/linear.h"

namespace troupe::layers {
namespace {

// Copies of one matrix, so that together they exceed the caches as a model's weights do.
constexpr size_t kColdBytes = size_t{512} << 20;

struct Weights {
  Mapping memory;
  std::vector<PackedMatrix> copies;
};

Weights make_weights(WeightType type, int64_t rows, int64_t cols, int leaves, size_t bytes) {
  PackedMatrix plan = plan_packed(
      type, rows, {.k_total = cols, .total_leaves = leaves, .first_leaf = 0, .num_leaves = leaves});
  const size_t stride = (plan.bytes() + 63) / 64 * 64;
  const size_t num_copies = std::max<size_t>(bytes / stride, 1);
  Weights weights{.memory = Mapping::anonymous(num_copies * stride, Mapping::Pages::kHuge),
                  .copies = {}};
  std::memset(weights.memory.data(), 0x31, weights.memory.size());
  for (size_t i = 0; i < num_copies; ++i) {
    plan.data = weights.memory.data() + i * stride;
    plan.scales = reinterpret_cast<float*>(plan.data + plan.data_bytes());
    weights.copies.push_back(plan);
  }
  return weights;
}

std::vector<float> random_floats(int64_t count) {
  std::minstd_rand random(1);
  std::vector<float> values(count);
  for (float& value : values) value = std::uniform_real_distribution<float>(-1, 1)(random);
  return values;
}

void run_linear(benchmark::State& state, WeightType type, Rounding dtype) {
  const int64_t tokens = state.range(0), rows = state.range(1), cols = state.range(2);
  const auto leaves = static_cast<int>(state.range(3));
  const Weights weights = make_weights(type, rows, cols, leaves, kColdBytes);
  const std::vector<float> x = random_floats(tokens * cols);
  std::vector<float> y(tokens * rows);
  InputBuffer inputs;
  size_t i = 0;
  for (auto _ : state) {
    const PackedMatrix& w = weights.copies[i++ % weights.copies.size()];
    linear(w, inputs.prepare(w, Matrix<const float>(x.data(), tokens, cols), dtype),
           Matrix<float>(y.data(), tokens, rows), dtype);
    benchmark::DoNotOptimize(y.data());
    benchmark::ClobberMemory();
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weights.copies[0].bytes()));
  state.counters["flops"] = benchmark::Counter(
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
// The most that the registers allow: 16 independent chains, whatever the values.
#define TROUPE_CHAINS(instruction)                                                           \
  asm volatile(".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n" instruction                 \
               " %%zmm16, %%zmm16, %%zmm\\i\n"                                               \
               ".endr" ::                                                                    \
                   : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", \
                     "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")

void count_chains(benchmark::State& state, double operations) {
  state.counters["flops"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * 16 * operations, benchmark::Counter::kIsRate);
}

void bench_fma(benchmark::State& state) {
  if (active_isa() < Isa::kAvx512) return state.SkipWithError("needs avx512");
  for (auto _ : state) TROUPE_CHAINS("vfmadd231ps");
  count_chains(state, 32);
}
void bench_dot4(benchmark::State& state) {
  if (active_isa() < Isa::kAvx512) return state.SkipWithError("needs avx512");
  for (auto _ : state) TROUPE_CHAINS("vpdpbusd");
  count_chains(state, 128);
}
void bench_dot(benchmark::State& state) {
  if (active_isa() < Isa::kAvx512Bf16) return state.SkipWithError("needs avx512_bf16");
  for (auto _ : state) TROUPE_CHAINS("vdpbf16ps");
  count_chains(state, 64);
}
BENCHMARK(bench_fma);
BENCHMARK(bench_dot);
BENCHMARK(bench_dot4);
#endif

void bench_pack(benchmark::State& state, WeightType to, SourceRows::Type from) {
  constexpr int64_t kRows = 2048, kCols = 7168;
  Weights weights = make_weights(to, kRows, kCols, 1, 1);
  const std::vector<std::byte> data(kRows * kCols * 4, std::byte{0x31});
  const std::vector<float> scales((kRows / kFp8Block) * (kCols / kFp8Block), 1.0f);
  const SourceRows source{.type = from,
                          .data = data.data(),
                          .row_stride = kCols,
                          .scales = scales.data(),
                          .scale_stride = kCols / kFp8Block};
  for (auto _ : state) {
    pack_rows(weights.copies[0], 0, kRows, source);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(weights.copies[0].data_bytes()));
}

void shapes(benchmark::internal::Benchmark* b) {
  struct Shape {
    int rows, cols, leaves;
  };
  for (const Shape& w : {Shape{2816, 2048, 1}, Shape{2048, 1408, kTpLeaves}, Shape{4096, 7168, 1},
                         Shape{7168, 2048, kTpLeaves}})
    for (const int tokens : {1, 2, 4, 8, 16, 48, 512}) b->Args({tokens, w.rows, w.cols, w.leaves});
  b->UseRealTime();
}

BENCHMARK(bench_read)->UseRealTime();
BENCHMARK_CAPTURE(run_linear, f32, WeightType::kF32, Rounding::kNone)->Apply(shapes);
BENCHMARK_CAPTURE(run_linear, bf16, WeightType::kBf16, Rounding::kBf16)->Apply(shapes);
BENCHMARK_CAPTURE(run_linear, fp8, WeightType::kFp8, Rounding::kBf16)->Apply(shapes);
BENCHMARK_CAPTURE(run_linear, int8, WeightType::kInt8, Rounding::kBf16)->Apply(shapes);
BENCHMARK_CAPTURE(run_linear, int4, WeightType::kInt4, Rounding::kBf16)->Apply(shapes);
BENCHMARK_CAPTURE(run_linear, mxfp4, WeightType::kMxfp4, Rounding::kBf16)->Apply(shapes);
BENCHMARK_CAPTURE(bench_pack, f32, WeightType::kF32, SourceRows::Type::kF32);
BENCHMARK_CAPTURE(bench_pack, bf16, WeightType::kBf16, SourceRows::Type::kBf16);
BENCHMARK_CAPTURE(bench_pack, fp8, WeightType::kFp8, SourceRows::Type::kFp8);
BENCHMARK_CAPTURE(bench_pack, fp8_to_bf16, WeightType::kBf16, SourceRows::Type::kFp8);

}  // namespace
}  // namespace troupe::layers

BENCHMARK_MAIN();
