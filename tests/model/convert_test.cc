#include "model/convert.h"

#include <cmath>
#include <stdexcept>

#include "base/bf16.h"
#include "layers/linear.h"
#include "model/model_config.h"
#include "model/weight_source.h"
#include "model/weights.h"
#include "tests/model/files.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kFp8 = source_file("tests/goldens/ds3-tiny-fp8");
constexpr const char* kDown = "model.layers.0.mlp.down_proj.weight";
constexpr const char* kKvB = "model.layers.0.self_attn.kv_b_proj.weight";

template <class T>
T at(const Tensor& tensor, int64_t i) {
  T value;
  std::memcpy(&value, tensor.data + i * sizeof(T), sizeof(T));
  return value;
}

// By the definition of the format, apart from the code under test.
double fp8_value(const Checkpoint& checkpoint, const std::string& name, int64_t row, int64_t col) {
  const Tensor& codes = *checkpoint.find(name);
  const Tensor& scales = *checkpoint.find(name + "_scale_inv");
  const auto code = at<uint8_t>(codes, row * codes.shape[1] + col);
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  const auto scale = at<float>(scales, row / 128 * scales.shape[1] + col / 128);
  return (code & 128 ? -magnitude : magnitude) * scale;
}

fs::path converted(const TemporaryDirectory& directory, QuantMode mode,
                   const fs::path& input = kFp8) {
  const fs::path output = directory.path() / "out";
  convert_checkpoint({.input = input, .output = output, .mode = mode, .progress = {}});
  return output;
}

TEST(Convert, Fp8BecomesItsValueRoundedToBf16) {
  const TemporaryDirectory directory;
  const Checkpoint before(kFp8), after(converted(directory, QuantMode::kBfloat16));
  for (const char* name : {kDown, kKvB}) {
    const Tensor& tensor = *after.find(name);
    ASSERT_EQ(tensor.dtype, Dtype::kBf16);
    ASSERT_EQ(tensor.shape, before.find(name)->shape);
    EXPECT_EQ(after.find(std::string(name) + "_scale_inv"), nullptr);
    for (int64_t i = 0; i < tensor.shape[0] * tensor.shape[1]; ++i) {
      const double value = fp8_value(before, name, i / tensor.shape[1], i % tensor.shape[1]);
      ASSERT_EQ(at<Bf16>(tensor, i).bits, to_bf16(static_cast<float>(value)).bits) << name << i;
    }
  }
}

// As openai/gpt-oss, gpt_oss/torch/weights.py, dequantises experts 0 and 1, with rows and columns
// exchanged as in Hugging Face's GptOssExperts.
TEST(Convert, Mxfp4ExpertsBecomeThePublishedBf16Form) {
  const fs::path input = source_file("tests/goldens/gpt-oss-tiny");
  const TemporaryDirectory directory;
  const fs::path output = converted(directory, QuantMode::kBfloat16, input);
  const Checkpoint after(output);
  const SafetensorsFile golden(input / "golden.safetensors");
  const ModelConfig config = read_model_config(output);
  EXPECT_EQ(config.weight_bits, 16);

  for (const std::string name :
       {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"}) {
    const Tensor& expected = golden.tensors().find("dequant." + name + ".experts_0_1")->second;
    const Tensor& found = *after.find(name);
    EXPECT_EQ(after.find(name + "_blocks"), nullptr);
    EXPECT_EQ(after.find(name + "_scales"), nullptr);
    const int64_t cols = found.shape.at(1), rows = found.shape.at(2);
    for (int64_t i = 0; i < 2 * rows * cols; ++i) {
      const int64_t expert = i / (rows * cols), row = i / cols % rows, col = i % cols;
      ASSERT_EQ(to_float(at<Bf16>(found, (expert * cols + col) * rows + row)),
                at<float>(expected, i))
          << name << " " << i;
    }
  }
}

TEST(Convert, ConvertedExpertsAreReadAsTheCodesWere) {
  const fs::path input = source_file("tests/goldens/gpt-oss-tiny");
  const TemporaryDirectory directory;
  const CheckpointSource before(input);
  const CheckpointSource after(converted(directory, QuantMode::kBfloat16, input));

  // Gate of expert 3, every other row from the first.
  const TensorSpec gate{.name = "model.layers.2.mlp.experts.gate_up_proj",
                        .kind = TensorKind::kMxfp4,
                        .rows = 96,
                        .cols = 128,
                        .first_row = 3 * 192,
                        .row_step = 2,
                        .stored_shape = {16, 192, 128}};
  ASSERT_TRUE(before.has_codes(gate));
  ASSERT_FALSE(after.has_codes(gate));
  RowBuffer codes, values;
  const layers::SourceRows a = before.read(gate, {7, 40}, {0, 128}, codes);
  const layers::SourceRows b = after.read(gate, {7, 40}, {0, 128}, values);
  EXPECT_EQ(std::memcmp(a.data, b.data, 33 * 128 * sizeof(Bf16)), 0);
}

TEST(Convert, Mxfp4IsNotMadeInt8) {
  const TemporaryDirectory directory;
  EXPECT_CONTAINS(user_error([&] {
                    converted(directory, QuantMode::kW8A8C16,
                              source_file("tests/goldens/gpt-oss-tiny"));
                  }),
                  "w8a8c16 is not supported for gpt_oss");
}

TEST(Convert, WhatIsNotFp8IsCopied) {
  const TemporaryDirectory directory;
  const fs::path output = converted(directory, QuantMode::kBfloat16);
  const Checkpoint before(kFp8), after(output);
  int copied = 0;
  for (const auto& [name, tensor] : before.tensors()) {
    if (tensor->dtype == Dtype::kF8E4M3 || name.ends_with("_scale_inv")) continue;
    const Tensor* copy = after.find(name);
    ASSERT_NE(copy, nullptr) << name;
    EXPECT_EQ(copy->dtype, tensor->dtype);
    ASSERT_EQ(copy->bytes, tensor->bytes);
    EXPECT_EQ(std::memcmp(copy->data, tensor->data, tensor->bytes), 0) << name;
    ++copied;
  }
  EXPECT_GT(copied, 10);
  for (const fs::directory_entry& file : fs::directory_iterator(kFp8)) {
    if (file.path().extension() == ".safetensors") continue;
    EXPECT_TRUE(fs::exists(output / file.path().filename())) << file.path();
  }
}

TEST(Convert, TheResultLoadsAndIsNoLongerFp8) {
  const TemporaryDirectory directory;
  const fs::path output = converted(directory, QuantMode::kBfloat16);
  const ModelConfig config = read_model_config(output);
  EXPECT_FALSE(config.fp8_weights);
  const ParallelLayout layout({}, config);
  const WeightLoader loader(output, config, layout, WeightOptions{});
  EXPECT_GT(loader.private_bytes(0) + loader.shared_bytes(), 0);
}

TEST(Convert, Int8CodesAreWithinHalfAStepOfTheWeightsWithTheRowsGreatestAt127) {
  const TemporaryDirectory directory;
  const Checkpoint before(kFp8), after(converted(directory, QuantMode::kW8A8C16));
  const Tensor& codes = *after.find(kDown);
  const Tensor& scales = *after.find(std::string(kDown) + "_scale");
  ASSERT_EQ(codes.dtype, Dtype::kI8);
  ASSERT_EQ(scales.dtype, Dtype::kF32);
  ASSERT_EQ(scales.shape, (std::vector<int64_t>{codes.shape[0], 1}));
  for (int64_t row = 0; row < codes.shape[0]; ++row) {
    const double scale = at<float>(scales, row);
    double largest = 0;
    for (int64_t col = 0; col < codes.shape[1]; ++col) {
      const double value = fp8_value(before, kDown, row, col);
      largest = std::max(largest, std::fabs(value));
      const int code = at<int8_t>(codes, row * codes.shape[1] + col);
      ASSERT_LE(std::fabs(value - code * scale), scale * 0.5001) << row << " " << col;
    }
    ASSERT_NEAR(scale, largest / 127, largest * 1e-6);
  }
}

TEST(Convert, ToInt8LeavesWhatInt8WouldSpoilAndNamesItInTheConfig) {
  const TemporaryDirectory directory;
  const fs::path output = converted(directory, QuantMode::kW8A8C16);
  const Checkpoint after(output);
  EXPECT_EQ(after.find(kKvB)->dtype, Dtype::kBf16);
  EXPECT_EQ(after.find("model.layers.1.mlp.gate.weight")->dtype,
            Checkpoint(kFp8).find("model.layers.1.mlp.gate.weight")->dtype);
  EXPECT_EQ(after.find("lm_head.weight")->dtype, Checkpoint(kFp8).find("lm_head.weight")->dtype);
  const json config = json::parse(read_file(output / "config.json"));
  const json& quantization = config.at("quantization_config");
  EXPECT_EQ(quantization.at("quant_method"), "compressed-tensors");
  EXPECT_EQ(quantization.at("config_groups").at("group_0").at("weights").at("num_bits"), 8);
  EXPECT_EQ(read_model_config(output, ModelUse::kCheck).weight_bits, 8);
}

// Shards of at most a few matrices; stops, like a kill, when `bytes` are done.
ConvertOptions in_small_shards(const fs::path& output, size_t stop_after = SIZE_MAX) {
  return {.input = kFp8,
          .output = output,
          .mode = QuantMode::kW8A8C16,
          .shard_bytes = 100'000,
          .progress = [stop_after](size_t done, size_t) {
            if (done > stop_after) throw std::runtime_error("stopped");
          }};
}

TEST(Convert, CutShortCannotBeLoadedAndGoesOnToTheSameFiles) {
  const TemporaryDirectory directory;
  const fs::path whole = directory.path() / "whole", cut = directory.path() / "cut";
  convert_checkpoint(in_small_shards(whole));
  EXPECT_THROW(convert_checkpoint(in_small_shards(cut, 600'000)), std::runtime_error);
  EXPECT_TRUE(fs::exists(cut / ".convert.json"));
  EXPECT_THROW(Checkpoint{cut}, UserError);
  EXPECT_THROW(read_model_config(cut), UserError);
  std::map<fs::path, fs::file_time_type> before;
  for (const fs::directory_entry& file : fs::directory_iterator(cut))
    if (file.path().extension() == ".safetensors") before[file.path()] = file.last_write_time();
  ASSERT_GT(before.size(), 1);

  convert_checkpoint(in_small_shards(cut));
  for (const auto& [path, time] : before) EXPECT_EQ(fs::last_write_time(path), time) << path;
  size_t files = 0;
  for (const fs::directory_entry& file : fs::directory_iterator(whole)) {
    EXPECT_EQ(read_file(file.path()), read_file(cut / file.path().filename())) << file.path();
    ++files;
  }
  EXPECT_GT(files, before.size() + 2);
  EXPECT_EQ(static_cast<size_t>(std::distance(fs::directory_iterator(cut), {})), files);
}

TEST(Convert, W8A8C8HasAScaleOfTheKvCacheForEachLayerMeasuredOnce) {
  const TemporaryDirectory directory;
  const fs::path output = directory.path() / "out";
  const fs::path text = directory.write("text.txt", "some words");
  const std::vector<KvScaleTensor> tensors = kv_scale_tensors(read_model_config(kFp8));
  int measured = 0;
  const auto convert = [&](size_t stop_after) {
    ConvertOptions options = in_small_shards(output, stop_after);
    options.mode = QuantMode::kW8A8C8;
    options.calibration_file = text;
    options.calibrate = [&] {
      KvScales scales;
      for (const KvScaleTensor& tensor : tensors)
        scales[tensor.name] = 0.1f + static_cast<float>(scales.size() + 100 * measured);
      ++measured;
      return scales;
    };
    convert_checkpoint(options);
  };
  EXPECT_THROW(convert(600'000), std::runtime_error);
  convert(SIZE_MAX);

  EXPECT_EQ(measured, 1);
  const Checkpoint after(output);
  ASSERT_EQ(tensors.size(), 3);  // its layers
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor* scale = after.find(fmt::format("model.layers.{}.self_attn.ckv_scale", i));
    ASSERT_NE(scale, nullptr) << i;
    EXPECT_EQ(scale->dtype, Dtype::kF32);
    EXPECT_EQ(scale->shape, std::vector<int64_t>{1});
    EXPECT_EQ(at<float>(*scale, 0), 0.1f + static_cast<float>(i));
  }
  const ModelConfig config = read_model_config(output);
  EXPECT_TRUE(config.int8_weights && config.int8_kv_cache && config.kv_cache_scales);

  const fs::path other = directory.path() / "other";
  ConvertOptions of_other_text = in_small_shards(other, 100'000);
  of_other_text.mode = QuantMode::kW8A8C8;
  of_other_text.calibration_file = text;
  of_other_text.calibrate = [] { return KvScales{}; };
  EXPECT_THROW(convert_checkpoint(of_other_text), std::runtime_error);
  of_other_text.calibration_file = directory.write("other.txt", "other words");
  EXPECT_CONTAINS(user_error([&] { convert_checkpoint(of_other_text); }),
                  "parts of another conversion");
}

TEST(Convert, RefusesADirectoryThatHoldsSomethingElse) {
  const TemporaryDirectory directory;
  directory.write("notes.txt", "mine");
  const auto into = [&](const fs::path& output, QuantMode mode) {
    return user_error([&] {
      convert_checkpoint({.input = kFp8, .output = output, .mode = mode, .progress = {}});
    });
  };
  EXPECT_CONTAINS(into(directory.path(), QuantMode::kBfloat16), "is not empty");
  EXPECT_CONTAINS(into(directory.path() / "notes.txt", QuantMode::kBfloat16), "directory");

  const fs::path cut = directory.path() / "cut";
  EXPECT_THROW(convert_checkpoint(in_small_shards(cut, 100'000)), std::runtime_error);
  EXPECT_CONTAINS(into(cut, QuantMode::kBfloat16), "parts of another conversion");

  const fs::path done = directory.path() / "done";
  convert_checkpoint(in_small_shards(done));
  EXPECT_CONTAINS(into(done, QuantMode::kW8A8C16), "holds a checkpoint already");
}

TEST(Convert, RefusesWhatHasNothingToConvert) {
  const TemporaryDirectory directory;
  EXPECT_CONTAINS(user_error([&] {
                    converted(directory, QuantMode::kBfloat16,
                              source_file("tests/goldens/ds3-tiny-bf16"));
                  }),
                  "holds no fp8, fp16 or MXFP4 weights");
  EXPECT_FALSE(fs::exists(directory.path() / "out"));
}

TEST(Convert, ARowThatIsNotFiniteIsNamed) {
  const TemporaryDirectory directory;
  const fs::path input = directory.path() / "in";
  fs::copy(kFp8, input);
  const Checkpoint original(kFp8);
  // One file with one matrix of F32 that holds an infinity; config.json is the golden's.
  for (const fs::directory_entry& file : fs::directory_iterator(input))
    if (file.path().extension() == ".safetensors" ||
        file.path().filename() == "model.safetensors.index.json")
      fs::remove(file.path());
  SafetensorsWriter writer(input / "model.safetensors", {{kDown, Dtype::kF32, {2, 3}}});
  const float values[] = {1, 2, 3, 4, INFINITY, 6};
  writer.write(kDown, 0, values, 6);
  writer.finish();
  EXPECT_CONTAINS(user_error([&] { converted(directory, QuantMode::kW8A8C16, input); }),
                  std::string(kDown) + "' holds a NaN or an infinity in row 1");
}

}  // namespace
}  // namespace troupe::model
