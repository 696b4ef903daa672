#include "model/split.h"

#include <gtest/gtest.h>

#include "tests/model/loaded_world.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;
using Format = WeightOptions::Format;

fs::path split(const TemporaryDirectory& directory, const fs::path& input,
               const ParallelSizes& sizes, const WeightOptions& weights) {
  const fs::path output = directory.path() / "split";
  split_checkpoint(
      {.input = input, .output = output, .sizes = sizes, .weights = weights, .progress = {}});
  return output;
}

const ParallelSizes kExpertParallel{.world_size = 4};
const ParallelSizes kTensorParallel{.world_size = 4,
                                    .attn_tp_size = 2,
                                    .dense_tp_size = 4,
                                    .moe_tp_size = 2,
                                    .embed_tp_size = 2,
                                    .lmhead_tp_size = 4};

void expect_same_bytes(const Mapping& a, const Mapping& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size()), 0);
}

TEST(Split, RanksPackTheSameBytesAsFromTheCheckpoint) {
  for (const char* checkpoint : {"tests/goldens/ds3-tiny-fp8", "tests/goldens/ds3-tiny-bf16",
                                 "tests/goldens/gpt-oss-tiny", "models/tiny-moe"}) {
    for (const ParallelSizes& sizes : {kExpertParallel, kTensorParallel}) {
      for (const Format format : {Format::kAuto, Format::kInt8}) {
        SCOPED_TRACE(checkpoint);
        const fs::path input = source_file(checkpoint);
        const ModelConfig config = read_model_config(input);
        const WeightOptions options{.with_mtp = config.num_nextn_predict_layers > 0,
                                    .format = format};
        const TemporaryDirectory directory;
        const fs::path output = split(directory, input, sizes, options);

        const LoadedWorld whole = load_world(input, config, sizes, options);
        const LoadedWorld parts = load_world(output, read_model_config(output), sizes, options);

        expect_same_bytes(whole.shared, parts.shared);
        for (int rank = 0; rank < sizes.world_size; ++rank)
          expect_same_bytes(whole.ranks[rank].private_memory, parts.ranks[rank].private_memory);
      }
    }
  }
}

TEST(Split, ARanksFileHoldsItsPartOnly) {
  const TemporaryDirectory directory;
  const fs::path output =
      split(directory, source_file("tests/goldens/ds3-tiny-bf16"), kExpertParallel, {});
  size_t bytes = 0;
  for (int rank = 0; rank < 4; ++rank) {
    const SafetensorsFile file(output / fmt::format("rank_{}/model.safetensors", rank));
    for (const auto& [name, tensor] : file.tensors()) {
      bytes += tensor.bytes;
      const size_t expert = name.find("mlp.experts.");
      if (expert == std::string::npos) continue;
      EXPECT_EQ(std::stoi(name.substr(expert + 12)) / 4, rank) << name;  // 16 experts
    }
  }
  EXPECT_EQ(bytes, Checkpoint(source_file("tests/goldens/ds3-tiny-bf16")).total_bytes());
}

TEST(Split, AnotherLayoutOrFormatIsRefusedWithBoth) {
  const TemporaryDirectory directory;
  const fs::path input = source_file("tests/goldens/ds3-tiny-bf16");
  const fs::path output = split(directory, input, kExpertParallel, {});
  const ModelConfig config = read_model_config(output);

  const std::string error = user_error([&] { load_world(output, config, kTensorParallel, {}); });
  EXPECT_CONTAINS(error, "\"attn_tp_size\":1");
  EXPECT_CONTAINS(error, "\"attn_tp_size\":2");
  user_error([&] { load_world(output, config, kExpertParallel, {.format = Format::kInt8}); });
}

TEST(Split, ADirectoryCutShortIsNone) {
  const TemporaryDirectory directory;
  const fs::path input = source_file("tests/goldens/ds3-tiny-bf16");
  const fs::path output = split(directory, input, kExpertParallel, {});
  EXPECT_CONTAINS(user_error([&] { split(directory, input, kExpertParallel, {}); }),
                  "is not empty");
  EXPECT_CONTAINS(user_error([&] {
                    split_checkpoint({.input = output,
                                      .output = directory.path() / "again",
                                      .sizes = {},
                                      .weights = {},
                                      .progress = {}});
                  }),
                  "is split already");

  fs::remove(output / "split.json");

  EXPECT_CONTAINS(
      user_error([&] { load_world(output, read_model_config(output), kExpertParallel, {}); }),
      "is this a checkpoint directory?");
}

}  // namespace
}  // namespace troupe::model
