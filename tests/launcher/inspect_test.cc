#include "launcher/inspect.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

using model::source_file;

TEST(Inspect, TellsAModelFromItsConfigAlone) {
  const std::string text = inspection_text(inspect(source_file("configs/shapes/kimi-k2"), {}));

  EXPECT_CONTAINS(text, "kimi_k2, 1026.4");
  EXPECT_CONTAINS(text, "384, 8 chosen by sigmoid, 1 shared");
  EXPECT_CONTAINS(text, "no weights here: counted from config.json");
}

TEST(Inspect, TellsFilesTokenizerAndTemplateOfACheckpoint) {
  const nlohmann::ordered_json json = inspection_json(inspect(source_file("models/tiny-moe"), {}));

  EXPECT_EQ(json["weights"], "files");
  EXPECT_EQ(json["tokenizer"], "tokenizer.json");
  EXPECT_EQ(json["layers"].size(), 6u);
  EXPECT_GT(json["types"]["F8_E4M3"]["bytes"], 0);
}

TEST(Inspect, SumsOfLayersAreTheWhole) {
  for (const char* directory : {"models/tiny-moe", "configs/shapes/gpt-oss-20b"}) {
    const nlohmann::ordered_json json = inspection_json(inspect(source_file(directory), {}));

    int64_t layers = 0;
    for (const auto& layer : json["layers"]) layers += layer["parameters"].get<int64_t>();
    const auto& parameters = json["parameters"];

    EXPECT_EQ(parameters["total"].get<int64_t>(),
              layers + parameters["embedding"].get<int64_t>() + parameters["head"].get<int64_t>());
  }
}

TEST(Inspect, TellsWhatEachRankOfALayoutNeeds) {
  const nlohmann::ordered_json json = inspection_json(
      inspect(source_file("models/tiny-moe"), source_file("configs/tiny_moe_rank_8_8ep.yaml")));

  const auto& layout = json["layout"];
  EXPECT_EQ(layout["world_size"], 8);
  ASSERT_EQ(layout["ranks"].size(), 8u);
  int64_t total = layout["shared_weights"];
  for (const auto& rank : layout["ranks"]) total += rank["total"].get<int64_t>();
  EXPECT_EQ(layout["total"], total);
}

TEST(Inspect, RefusesADirectoryWithoutConfig) {
  EXPECT_CONTAINS(model::user_error([] { inspect(source_file("docs"), {}); }), "config.json");
}

}  // namespace
}  // namespace troupe::launcher
