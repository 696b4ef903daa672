#include "model/mxfp4.h"

#include <gtest/gtest.h>

#include "model/weight_source.h"
#include "tests/model/plain_checkpoint.h"

namespace troupe::model {
namespace {

const char* const kGptOss = "tests/goldens/gpt-oss-tiny";

TEST(Mxfp4, CodesAreSignExponentFractionInUnitsOfTheScale) {
  const std::vector<float> magnitudes{0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  std::byte codes[kMxfp4BlockBytes];
  for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::byte>(i | (15 - i) << 4);
  for (const int scale : {0, 1, 120, 127, 130, int{kMxfp4MaxScale}}) {
    Bf16 out[kMxfp4Block];

    dequantize_mxfp4(codes, static_cast<uint8_t>(scale), out);

    for (int i = 0; i < kMxfp4Block; ++i) {
      const int code = i % 2 == 0 ? i / 2 : 15 - i / 2;
      const float magnitude = std::ldexp(magnitudes[code % 8], scale - 127);
      EXPECT_EQ(to_float(out[i]), code < 8 ? magnitude : -magnitude) << code << " scale " << scale;
    }
  }
}

// Experts 0 and 1 as openai/gpt-oss, gpt_oss/torch/weights.py, dequantises them.
TEST(Mxfp4, ACheckpointsExpertsAreTheReferences) {
  const SafetensorsFile golden(source_file(kGptOss) / "golden.safetensors");
  const CheckpointSource source(source_file(kGptOss));
  const auto expect_equal = [&](const TensorSpec& tensor, const std::string& name) {
    const Tensor& expected =
        golden.tensors().find(fmt::format("dequant.{}.experts_0_1", name))->second;
    RowBuffer buffer;
    ASSERT_EQ(source.type(tensor), Dtype::kBf16);
    // In two pieces, the second of them some inputs only.
    for (const auto& [rows, cols] : {std::pair{Range{0, 5}, Range{0, tensor.cols}},
                                     {Range{5, tensor.rows}, Range{40, tensor.cols}}}) {
      const layers::SourceRows read = source.read(tensor, rows, cols, buffer);
      ASSERT_EQ(read.type, layers::SourceRows::Type::kBf16);
      for (int64_t row = rows.begin; row < rows.end; ++row)
        for (int64_t col = cols.begin; col < cols.end; ++col) {
          const int64_t at = (row - rows.begin) * read.row_stride + col;
          ASSERT_EQ(to_float(reinterpret_cast<const Bf16*>(read.data)[at]),
                    reinterpret_cast<const float*>(
                        expected.data)[tensor.stored_row(row) * tensor.cols + col])
              << row << ", " << col;
        }
    }
  };

  for (const int64_t place : {0, 1})  // gate and up of expert 1
    expect_equal({.name = "model.layers.0.mlp.experts.gate_up_proj",
                  .kind = TensorKind::kMxfp4,
                  .rows = 96,
                  .cols = 128,
                  .first_row = 192 + place,
                  .row_step = 2,
                  .stored_shape = {16, 192, 128}},
                 "model.layers.0.mlp.experts.gate_up_proj");
  expect_equal({.name = "model.layers.1.mlp.experts.down_proj",
                .kind = TensorKind::kMxfp4,
                .rows = 128,
                .cols = 96,
                .first_row = 0,
                .stored_shape = {16, 128, 96}},
               "model.layers.1.mlp.experts.down_proj");
}

class FaultyMxfp4 : public testing::Test {
 protected:
  std::string error() {
    plain_.write_to(directory_.path());
    const CheckpointSource source(directory_.path());
    return user_error([&] {
      source.type(kDown);
      RowBuffer buffer;
      source.read(kDown, {0, kDown.rows}, {0, kDown.cols}, buffer);
    });
  }

  const TensorSpec kDown{.name = "model.layers.1.mlp.experts.down_proj",
                         .kind = TensorKind::kMxfp4,
                         .rows = 128,
                         .cols = 96,
                         .first_row = 3 * 128,
                         .stored_shape = {16, 128, 96}};
  PlainCheckpoint plain_{source_file(kGptOss)};
  TemporaryDirectory directory_;
};

TEST_F(FaultyMxfp4, ScalesWithoutANumberAreNamed) {
  plain_.tensors.at(kDown.name + "_scales").bytes[(3 * 128 + 5) * 3 + 2] = '\xff';

  EXPECT_CONTAINS(error(), "down_proj_scales' holds 255 at row 389, block 2");
}

TEST_F(FaultyMxfp4, MissingScalesAreNamed) {
  plain_.tensors.erase(kDown.name + "_scales");

  EXPECT_CONTAINS(error(), "down_proj_scales' is missing");
}

TEST_F(FaultyMxfp4, OtherTypesAndShapesAreNamed) {
  PlainTensor& blocks = plain_.tensors.at(kDown.name + "_blocks");
  blocks.dtype = "F8_E4M3";
  EXPECT_CONTAINS(error(), "down_proj_blocks' has type F8_E4M3; MXFP4 is stored as U8");
  blocks.dtype = "U8";
  std::swap(blocks.shape[0], blocks.shape[1]);
  EXPECT_CONTAINS(error(), "down_proj_blocks' has shape");
}

TEST_F(FaultyMxfp4, UnquantisedExpertsOfAnotherShapeOrTypeAreNamed) {
  plain_.tensors[kDown.name] = {"BF16", {1}, "xx"};
  EXPECT_CONTAINS(error(), "config.json asks for [16, 96, 128]");
  plain_.tensors[kDown.name] = {"F32", {16, 96, 128}, std::string(16 * 96 * 128 * 4, '\0')};
  EXPECT_CONTAINS(error(), "down_proj' has type F32; supported here: MXFP4, BF16");
}

}  // namespace
}  // namespace troupe::model
