#include "launcher/forward_work.h"

#include <gtest/gtest.h>

namespace troupe::launcher {
namespace {

// models/tiny-moe with every weight in bf16.
Config tiny_moe() {
  Config config;
  config.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
  config.runtime.weight_format = WeightFormat::kBf16;
  return config;
}

Work work_of(const Config& config, const ForwardShape& shape) {
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  return ForwardWork(config, model).of(shape);
}

// Weights by hand from config.json: 6 layers, the first dense, 5 of 16 experts; 8 heads.
constexpr double kAttention =
    6 * (256 * 128 + 8 * 48 * 128 + 80 * 256 + 2 * 8 * 64 * 32 + 256 * 256);
constexpr double kDense = 3 * 704 * 256;
constexpr double kGates = 5 * 16 * 256;
constexpr double kExpert = 3 * 64 * 256;
constexpr double kShared = 5 * kExpert;
constexpr double kHead = 4096 * 256;
constexpr double kUsedByEveryRow = kAttention + kDense + kGates + kShared + kHead;

constexpr auto kBf16 = static_cast<size_t>(layers::Arithmetic::kBf16);
constexpr auto kF32 = static_cast<size_t>(layers::Arithmetic::kF32);

TEST(ForwardWork, IsWhatAHandCountGives) {
  const Work work = work_of(tiny_moe(), {.first_position = 9, .experts_touched = 5 * 4});

  EXPECT_EQ(work.weight_bytes, 2 * (kUsedByEveryRow + 20 * kExpert));
  // Ten rows of 64 + 16 elements a layer; a head's score takes all of them, its value the 64.
  EXPECT_EQ(work.kv_bytes, 6 * 10 * 80 * 2);
  EXPECT_EQ(work.operations[kBf16],
            2 * (kUsedByEveryRow + 20 * kExpert) + 6 * 8 * 10 * 2 * (80 + 64));
  EXPECT_EQ(work.operations[kF32], 0);
}

TEST(ForwardWork, ReadsWeightsOnceForManyRowsAndSamplesOne) {
  const Work work = work_of(tiny_moe(), {.rows = 100, .experts_touched = 5 * 16});

  EXPECT_EQ(work.weight_bytes, 2 * (kUsedByEveryRow + 80 * kExpert));
  EXPECT_EQ(work.kv_bytes, 6 * 100 * 80 * 2);
  EXPECT_EQ(work.operations[kBf16], 2 * (100 * (kUsedByEveryRow - kHead + 20 * kExpert) + kHead) +
                                        6 * 8 * (100 * 101 / 2) * 2.0 * (80 + 64));
}

TEST(ForwardWork, CountsACopyOfTheWeightsForEachRankThatReadsOne) {
  Config config = tiny_moe();
  config.parallel.world_size = 2;

  const Work one_busy = work_of(config, {.sequences = 1, .experts_touched = 20});
  const Work both_busy = work_of(config, {.sequences = 2, .experts_touched = 30});

  EXPECT_EQ(one_busy.weight_bytes, 2 * (kUsedByEveryRow + 20 * kExpert));
  EXPECT_EQ(both_busy.weight_bytes, 2 * (2 * kUsedByEveryRow + 30 * kExpert));
  EXPECT_EQ(both_busy.operations[kBf16], 2 * one_busy.operations[kBf16]);
}

TEST(ForwardWork, TensorParallelRanksShareWhatTheyCut) {
  Config config = tiny_moe();
  config.parallel = {.world_size = 2,
                     .attn_tp_size = 2,
                     .dense_tp_size = 2,
                     .moe_tp_size = 2,
                     .lmhead_tp_size = 2,
                     .o_proj_tp_size = 2,
                     .shared_tp_size = 2};

  const Work work = work_of(config, {.experts_touched = 20});

  // Both ranks compute the latents: what is not cut by heads.
  constexpr double kLatents = 6 * (256 * 128 + 80 * 256);
  EXPECT_EQ(work.weight_bytes, 2 * (kUsedByEveryRow + kLatents + 20 * kExpert));
  EXPECT_EQ(work.operations[kBf16],
            2 * (kUsedByEveryRow + kLatents + 20 * kExpert) + 6 * 8 * 2 * (80 + 64));
}

TEST(ForwardWork, ComputesInFp32WhereThatIsTheDtype) {
  Config config = tiny_moe();
  config.model.dtype = ComputeType::kFloat32;

  const Work work = work_of(config, {.experts_touched = 20});

  EXPECT_EQ(work.operations[kBf16], 0);
  EXPECT_EQ(work.operations[kF32], 2 * (kUsedByEveryRow + 20 * kExpert) + 6 * 8 * 2 * (80 + 64));
}

}  // namespace
}  // namespace troupe::launcher
