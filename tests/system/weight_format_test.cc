// weight_format: how far quantised weights move the model that ships with the project, and int8
// checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "tests/system/golden.h"
#include "tests/system/model_copy.h"

namespace troupe::system_tests {
namespace {

std::vector<Ids> stories() {
  std::vector<Ids> stories;
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  for (const json& c : golden["cases"]) {
    Ids& story = stories.emplace_back(c["prompt_ids"]);
    const Ids continuation = c["continuation_ids"];
    story.insert(story.end(), continuation.begin(), continuation.end());
  }
  return stories;
}

double perplexity(const std::string& format) {
  json config = configuration(tiny_moe(), 2, "bfloat16");
  config["runtime_config"]["weight_format"] = format;
  config["scheduler_config"]["batch_size"] = 8;
  const model::TemporaryDirectory files;
  auto arguments = command_line("score", config, stories(), files);
  const std::filesystem::path report = files.path() / "report.json";
  arguments.insert(arguments.end(), {"--json", report.string()});
  const Ended ended = run_troupe(arguments);
  EXPECT_EQ(ended.status, 0) << ended.err;
  return json::parse(model::read_file(report))["perplexity"];
}

TEST(WeightFormat, MovesPerplexityAsLittleAsItsBitsAllow) {
  const double exact = perplexity("bf16");

  EXPECT_NEAR(perplexity("int8") / exact, 1, 0.01);
  EXPECT_NEAR(perplexity("int4") / exact, 1, 0.15);
  EXPECT_NEAR(perplexity("mxfp4") / exact, 1, 0.25);
}

bool is_int8_matrix(const std::string& name) {
  return name.ends_with("_proj.weight") && !name.ends_with("kv_b_proj.weight") &&
         !name.ends_with("eh_proj.weight");
}

// A checkpoint whose linears are int8, and one with the same numbers in bf16. Scales are powers of
// two and a code of every row is 127, so that quantising the latter yields the former.
struct Int8Twins {
  ModelCopy codes, values;

  Int8Twins()
      : codes(golden_directory("ds3-tiny-bf16")), values(golden_directory("ds3-tiny-bf16")) {
    codes.config["quantization_config"] = json::parse(
        R"({"quant_method": "compressed-tensors", "format": "int-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 8, "strategy": "channel"}}}})");
    for (const auto& [name, tensor] : std::map(codes.tensors()))
      if (is_int8_matrix(name)) quantize(name, tensor);
  }

 private:
  void quantize(const std::string& name, const model::PlainTensor& tensor) {
    model::PlainTensor& as_codes = codes.tensors().at(name);
    model::PlainTensor& as_values = values.tensors().at(name);
    as_codes = {"I8", tensor.shape, ""};
    as_values = {"BF16", tensor.shape, ""};
    model::PlainTensor scales{"F32", {tensor.shape[0], 1}, ""};
    const int64_t cols = tensor.cols();
    for (int64_t row = 0; row < tensor.shape[0]; ++row) {
      const float scale = row % 2 == 0 ? 0x1p-10f : 0x1p-9f;
      scales.bytes.append(reinterpret_cast<const char*>(&scale), sizeof scale);
      for (int64_t col = 0; col < cols; ++col) {
        const float value = to_float(Bf16{tensor.at<uint16_t>(row * cols + col)});
        const auto code = static_cast<int8_t>(
            col == row % cols ? 127 : std::clamp(std::round(value / scale), -127.0f, 127.0f));
        const uint16_t bits = to_bf16(code * scale).bits;
        as_codes.bytes += static_cast<char>(code);
        as_values.bytes.append(reinterpret_cast<const char*>(&bits), sizeof bits);
      }
    }
    codes.tensors()[name + "_scale"] = scales;
  }
};

Dump dump_of(const std::filesystem::path& model, int world_size, const std::string& format) {
  json config = configuration(model, world_size, "bfloat16");
  config["runtime_config"]["weight_format"] = format;
  for (const char* key : {"attn_tp_size", "moe_tp_size", "dense_tp_size", "shared_tp_size"})
    config["parallel_config"][key] = world_size;
  return Dump(config, {{1, 2, 3, 5, 8, 13, 21, 34}}, "logits");
}

TEST(WeightFormat, OfAnInt8CheckpointKeepsItsCodesAndScales) {
  Int8Twins twins;
  const Dump codes = dump_of(twins.codes.write(), 1, "int8");
  const Dump values = dump_of(twins.values.write(), 1, "int8");

  EXPECT_TRUE(same_bytes(codes.tensor("logits.0"), values.tensor("logits.0")));

  const Dump as_stored = dump_of(twins.codes.directory().path(), 1, "auto");
  const Dump on_two_ranks = dump_of(twins.codes.directory().path(), 2, "auto");
  EXPECT_TRUE(same_bytes(as_stored.tensor("logits.0"), on_two_ranks.tensor("logits.0")));
  EXPECT_FALSE(same_bytes(as_stored.tensor("logits.0"), codes.tensor("logits.0")));  // the heads
}

std::string error_of(ModelCopy& model, const std::string& format) {
  json config = configuration(model.write(), 1, "bfloat16");
  config["runtime_config"]["weight_format"] = format;
  const model::TemporaryDirectory files;
  const Ended ended = run_troupe(command_line("score", config, {{1, 2}}, files));
  EXPECT_EQ(ended.status, 2);
  return ended.err;
}

TEST(WeightFormat, OfAnInt8CheckpointIsAnErrorWhereItCannotBe) {
  constexpr const char* kName = "model.layers.0.self_attn.o_proj.weight";
  Int8Twins twins;
  EXPECT_NE(error_of(twins.codes, "int4").find("set runtime_config.weight_format to auto"),
            std::string::npos);

  const float nan = std::nanf("");
  twins.codes.tensors()
      .at(std::string(kName) + "_scale")
      .bytes.replace(4, 4, reinterpret_cast<const char*>(&nan), 4);
  EXPECT_NE(error_of(twins.codes, "auto").find("_scale' holds nan at [1, 0]"), std::string::npos);

  twins.codes.tensors().erase(std::string(kName) + "_scale");
  EXPECT_NE(error_of(twins.codes, "auto").find(std::string(kName) + "_scale"), std::string::npos);
}

}  // namespace
}  // namespace troupe::system_tests
