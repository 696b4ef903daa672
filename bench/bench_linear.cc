// bench/bench_linear.cc: how fast linear() and pack_rows() run on one thread.
//
// One row streams the weights: bytes_per_second is to be read beside read/..., which only sums
// memory of the same size. Many rows compute: the counter flops is multiplications and additions.
// The instruction set is the best of the machine, or what TROUPE_ISA names.
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

struct Weights {
  Mapping memory;
  std::vector<PackedMatrix> copies;
};

Weights make_weights(WeightType type, int64_t rows, int64_t cols, size_t bytes) {
  PackedMatrix plan = plan_packed(type, rows, LeafRange{.k_total = cols});
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

void run_linear(benchmark::State& state, WeightType type, size_t cold_bytes) {
  const int64_t tokens = state.range(0), rows = state.range(1), cols = state.range(2);
  const Weights weights = make_weights(type, rows, cols, cold_bytes);
  const std::vector<float> x = random_floats(tokens * cols);
  std::vector<float> y(tokens * rows);
  size_t i = 0;
  for (auto _ : state) {
    linear(weights.copies[i++ % weights.copies.size()], Matrix<const float>(x.data(), tokens, cols),
           Matrix<float>(y.data(), tokens, rows), Rounding::kBf16);
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

void bench_pack(benchmark::State& state, WeightType to, SourceRows::Type from) {
  constexpr int64_t kRows = 2048, kCols = 7168;
  Weights weights = make_weights(to, kRows, kCols, 1);
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

void one_row(benchmark::internal::Benchmark* b) {
  b->Args({1, 2048, 2048})->Args({1, 7168, 2048})->Args({1, 2048, 7168})->UseRealTime();
}
void few_rows(benchmark::internal::Benchmark* b) {
  for (const int tokens : {2, 4, 8, 16}) b->Args({tokens, 2048, 7168});
  b->UseRealTime();
}
void many_rows(benchmark::internal::Benchmark* b) {
  b->Args({512, 2048, 2048})->Args({512, 2048, 7168})->Args({512, 7168, 2048})->UseRealTime();
}

BENCHMARK(bench_read)->UseRealTime();
BENCHMARK_CAPTURE(run_linear, f32, WeightType::kF32, kColdBytes)->Apply(one_row);
BENCHMARK_CAPTURE(run_linear, bf16, WeightType::kBf16, kColdBytes)->Apply(one_row);
BENCHMARK_CAPTURE(run_linear, fp8, WeightType::kFp8, kColdBytes)->Apply(one_row);
BENCHMARK_CAPTURE(run_linear, bf16, WeightType::kBf16, kColdBytes)->Apply(few_rows);
BENCHMARK_CAPTURE(run_linear, fp8, WeightType::kFp8, kColdBytes)->Apply(few_rows);
BENCHMARK_CAPTURE(run_linear, f32, WeightType::kF32, 1)->Apply(many_rows);
BENCHMARK_CAPTURE(run_linear, bf16, WeightType::kBf16, 1)->Apply(many_rows);
BENCHMARK_CAPTURE(run_linear, fp8, WeightType::kFp8, 1)->Apply(many_rows);
BENCHMARK_CAPTURE(bench_pack, f32, WeightType::kF32, SourceRows::Type::kF32);
BENCHMARK_CAPTURE(bench_pack, bf16, WeightType::kBf16, SourceRows::Type::kBf16);
BENCHMARK_CAPTURE(bench_pack, fp8, WeightType::kFp8, SourceRows::Type::kFp8);
BENCHMARK_CAPTURE(bench_pack, fp8_to_bf16, WeightType::kBf16, SourceRows::Type::kFp8);

}  // namespace
}  // namespace troupe::layers

BENCHMARK_MAIN();
