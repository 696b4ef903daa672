// What is wrong in a checkpoint is named before, or while, its weights are loaded.
#include "model/weights.h"
#include "tests/model/loaded_world.h"
#include "tests/model/plain_checkpoint.h"

namespace troupe::model {
namespace {

const char* const kFp8 = "tests/goldens/ds3-tiny-fp8";

// A copy of ds3-tiny-fp8 with a fault in it; the error of loading it.
class FaultyCheckpoint : public testing::Test {
 protected:
  using Tensors = std::map<std::string, PlainTensor>;

  std::string error_of(const std::function<void(Tensors&)>& spoil) const {
    PlainCheckpoint plain(source_file(kFp8));
    spoil(plain.tensors);
    const TemporaryDirectory directory;
    plain.write_to(directory.path());
    const ModelConfig config = read_model_config(source_file(kFp8));
    const std::string error = user_error([&] { load_world(directory.path(), config, {}, {}); });
    EXPECT_CONTAINS(error, directory.path().string());
    return error;
  }
  static void set_float(PlainTensor& tensor, size_t index, float value) {
    std::memcpy(&tensor.bytes[index * sizeof value], &value, sizeof value);
  }

  const std::string o_proj_ = "model.layers.2.self_attn.o_proj.weight";
  const std::string kv_b_ = "model.layers.1.self_attn.kv_b_proj.weight";
};

TEST_F(FaultyCheckpoint, AnyMissingTensorIsNamed) {
  const PlainCheckpoint plain(source_file(kFp8));
  int i = 0;
  for (const auto& [name, tensor] : plain.tensors) {
    if (++i % 23 != 0) continue;  // each takes a whole copy
    EXPECT_CONTAINS(error_of([&](Tensors& tensors) { tensors.erase(name); }),
                    "tensor '" + name + "' is missing");
  }
}

TEST_F(FaultyCheckpoint, WrongShapesAndTypesAreNamed) {
  EXPECT_CONTAINS(
      error_of([&](Tensors& t) { std::swap(t[o_proj_].shape[0], t[o_proj_].shape[1]); }),
      "tensor '" + o_proj_ + "' has shape [256, 192]; config.json asks for [192, 256]");
  EXPECT_CONTAINS(error_of([&](Tensors& t) {
                    t[o_proj_ + "_scale_inv"].shape = {4, 1};
                  }),
                  "tensor '" + o_proj_ + "_scale_inv' has shape [4, 1]");
  EXPECT_CONTAINS(
      error_of([&](Tensors& t) { t["lm_head.weight"].dtype = "I16"; }),
      "tensor 'lm_head.weight' has type other; supported here: BF16, F16, F32, F8_E4M3");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t["model.norm.weight"].dtype = "I16"; }),
                  "tensor 'model.norm.weight' has type other; supported here: BF16, F16, F32");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t[o_proj_ + "_scale_inv"].dtype = "I32"; }),
                  "tensor '" + o_proj_ + "_scale_inv' has type I32; scales must be F32");
}

TEST_F(FaultyCheckpoint, ScalesThatAreNoScalesAreNamed) {
  for (const float value : {NAN, INFINITY, -INFINITY, -1.0f, 0.0f, 3e38f})
    EXPECT_CONTAINS(
        error_of([&](Tensors& t) { set_float(t[o_proj_ + "_scale_inv"], 2, value); }),
        "tensor '" + o_proj_ + "_scale_inv' holds " + fmt::format("{} at [1, 0]", value));
  EXPECT_CONTAINS(error_of([&](Tensors& t) { set_float(t[kv_b_ + "_scale_inv"], 3, NAN); }),
                  "tensor '" + kv_b_ + "_scale_inv' holds nan at [3, 0]");
}

TEST_F(FaultyCheckpoint, Fp8CodesThatAreNoNumbersAreNamed) {
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t[o_proj_].bytes[191 * 256 + 255] = '\x7f'; }),
                  "tensor '" + o_proj_ + "' holds a NaN at [191, 255]");
  EXPECT_CONTAINS(error_of([&](Tensors& t) { t[kv_b_].bytes[70 * 128 + 1] = '\xff'; }),
                  "tensor '" + kv_b_ + "' holds a NaN at [70, 1]");
}

TEST_F(FaultyCheckpoint, PartsOfOneMatrixHaveOneType) {
  const std::string up = "model.layers.0.mlp.up_proj.weight";
  EXPECT_CONTAINS(user_error([&] {
                    const TemporaryDirectory directory;
                    PlainCheckpoint plain(source_file(kFp8));
                    plain.tensors[up].dtype = "BF16";
                    plain.tensors[up].bytes.resize(2 * 320 * 192);
                    plain.write_to(directory.path());
                    WeightLoader loader(directory.path(), read_model_config(source_file(kFp8)),
                                        ParallelLayout({}, read_model_config(source_file(kFp8))),
                                        {});
                  }),
                  "'" + up + "' have types F8_E4M3 and BF16");
}

TEST(Weights, MtpIsRefusedWithoutAModule) {
  EXPECT_CONTAINS(user_error([] { load_world(kFp8, {}, {.with_mtp = true}); }), "next_n");
}

}  // namespace
}  // namespace troupe::model
