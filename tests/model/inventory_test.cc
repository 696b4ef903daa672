#include "model/inventory.h"

#include "model/safetensors.h"
#include "tests/model/files.h"

namespace troupe::model {
namespace {

Inventory of_shape(const std::string& name, ModelConfig& config) {
  const std::filesystem::path directory = source_file("configs/shapes/" + name);
  config = read_model_config(directory, ModelUse::kCheck);
  return take_inventory(directory, config);
}

double billions(int64_t parameters) { return static_cast<double>(parameters) * 1e-9; }

struct Published {
  const char* shape;
  double total, active;  // billions, as their authors state them
  bool active_has_embedding;
  double rounding;  // of both
};

// DeepSeek-V3's README_WEIGHTS.md; the model cards of Kimi-K2 (1T, 32B), gpt-oss (table 1) and
// Qwen3; DeepSeek-V2's report, appendix B.
constexpr Published kPublished[] = {{"deepseek-r1", 671, 36.6, false, 0.5},
                                    {"deepseek-v3.1", 671, 36.6, false, 0.5},
                                    {"kimi-k2", 1026, 32, false, 0.6},
                                    {"gpt-oss-20b", 20.91, 3.61, false, 0.006},
                                    {"gpt-oss-120b", 116.83, 5.13, false, 0.006},
                                    {"deepseek-v2-lite", 15.7, 2.4, false, 0.2},
                                    {"qwen3-30b-a3b", 30.5, 3.3, true, 0.06}};

TEST(Inventory, CountsTheParametersThatWerePublished) {
  for (const Published& published : kPublished) {
    SCOPED_TRACE(published.shape);
    ModelConfig config;
    const Inventory inventory = of_shape(published.shape, config);
    const int64_t active = inventory.active(config) +
                           (published.active_has_embedding ? inventory.embedding.parameters : 0);

    EXPECT_NEAR(billions(inventory.main().parameters), published.total, published.rounding);
    EXPECT_NEAR(billions(active), published.active, published.rounding);
    EXPECT_FALSE(inventory.from_files);
  }
}

TEST(Inventory, CountsTheBytesThatWerePublished) {
  // total_size of model.safetensors.index.json.
  ModelConfig config;
  EXPECT_EQ(of_shape("gpt-oss-20b", config).all().bytes, 13'761'264'768u);
  EXPECT_EQ(of_shape("gpt-oss-120b", config).all().bytes, 65'248'815'744u);
}

TEST(Inventory, CountsTheMtpModuleByItself) {
  // "11.5B unique parameters", README_WEIGHTS.md; eh_proj, which it does not count, is 0.1B.
  ModelConfig config;
  EXPECT_NEAR(billions(of_shape("deepseek-r1", config).mtp.parameters), 11.6, 0.05);
}

TEST(Inventory, CountsWhatLiesInTheFiles) {
  for (const char* checkpoint : {"tests/goldens/ds3-tiny-fp8", "tests/goldens/gpt-oss-tiny",
                                 "tests/goldens/ds-v2-lite-tiny", "tests/goldens/kimi-k2-tiny"}) {
    SCOPED_TRACE(checkpoint);
    const std::filesystem::path directory = source_file(checkpoint);
    const ModelConfig config = read_model_config(directory);
    const Inventory files = take_inventory(directory, config);

    EXPECT_TRUE(files.from_files);
    EXPECT_EQ(files.unused.tensors, 0) << files.first_unused;
    EXPECT_EQ(files.all().bytes, Checkpoint(directory).total_bytes());
  }
}

TEST(Inventory, FilesAndConfigAgree) {
  const std::filesystem::path directory = source_file("tests/goldens/gpt-oss-tiny");
  const ModelConfig config = read_model_config(directory);
  const TemporaryDirectory bare;
  bare.write("config.json", read_file(directory / "config.json"));

  const Inventory files = take_inventory(directory, config);
  const Inventory counted = take_inventory(bare.path(), config);

  EXPECT_EQ(files.main().parameters, counted.main().parameters);
  EXPECT_EQ(files.active(config), counted.active(config));
  EXPECT_EQ(files.types.at("MXFP4").bytes, counted.types.at("MXFP4").bytes);
}

TEST(Inventory, NamesWhatNobodyReads) {
  const std::filesystem::path directory = source_file("tests/goldens/ds3-tiny-bf16");
  const TemporaryDirectory copy;
  nlohmann::json config = nlohmann::json::parse(read_file(directory / "config.json"));
  config["num_nextn_predict_layers"] = 0;
  copy.write("config.json", config.dump());
  for (const auto& file : std::filesystem::directory_iterator(directory))
    if (file.path().filename().string().find("safetensors") != std::string::npos)
      std::filesystem::create_symlink(file.path(), copy.path() / file.path().filename());

  const Inventory inventory = take_inventory(copy.path(), read_model_config(copy.path()));

  EXPECT_GT(inventory.unused.tensors, 0);
  EXPECT_CONTAINS(inventory.first_unused, "model.layers.");
}

}  // namespace
}  // namespace troupe::model
