#include "model/expert_placement.h"

#include "model/parallel_layout.h"
#include "tests/model/files.h"

namespace troupe::model {
namespace {

// Layers 1 and 2 and the MTP module's, 3, have four experts each.
ModelConfig config_of_four() {
  ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 64;
  config.intermediate_size = 40;
  config.moe_intermediate_size = 24;
  config.num_attention_heads = 8;
  config.n_routed_experts = 4;
  config.num_hidden_layers = 3;
  config.first_k_dense_replace = 1;
  config.num_nextn_predict_layers = 1;
  return config;
}

ExpertPlacement placement_of(const std::vector<int32_t>& places) {
  return {.layers = {{1, places}, {2, places}, {3, places}}, .source = "p.json"};
}

std::string layout_error(const ExpertPlacement& placement, int ranks = 2) {
  return user_error([&] {
    ParallelLayout({.world_size = ranks, .expert_placement = placement}, config_of_four());
  });
}

TEST(ExpertPlacement, SaysWhichExpertsARankHolds) {
  ExpertPlacement placement = placement_of({3, 0, 1, 2, 3, 3});
  placement.layers[2] = {0, 1, 2, 3, 1, 2};
  const ParallelLayout layout({.world_size = 4, .moe_tp_size = 2, .expert_placement = placement},
                              config_of_four());

  EXPECT_EQ(layout.num_physical_experts(), 6);
  EXPECT_EQ(layout.experts(1).begin, 0);
  EXPECT_EQ(layout.experts(2).begin, 3);
  EXPECT_EQ(layout.experts(3).end, 6);
  EXPECT_EQ(layout.logical_expert(1, 3), 2);
  EXPECT_EQ(layout.logical_expert(2, 3), 3);
  EXPECT_EQ(layout.logical_expert(2, 5), 2);
}

TEST(ExpertPlacement, LetsRanksShareExpertsThatDoNotDivideByThem) {
  const ParallelLayout layout(
      {.world_size = 3, .expert_placement = placement_of({0, 1, 2, 3, 0, 1})}, config_of_four());

  EXPECT_EQ(layout.experts(2).begin, 4);
  EXPECT_EQ(layout.experts(2).end, 6);
}

TEST(ExpertPlacement, ThatDoesNotFitTheModelIsRefusedByName) {
  EXPECT_EQ(layout_error(placement_of({0, 1, 2, 0})),
            "p.json: layer 1: expert 3 has no place; each must be in the list");
  EXPECT_EQ(layout_error(placement_of({0, 1, 2, 3, 4, 0})),
            "p.json: layer 1: there is no expert 4; the model has 4");
  EXPECT_EQ(layout_error(placement_of({0, 1, 2, 3, -1, 0})),
            "p.json: layer 1: there is no expert -1; the model has 4");
  EXPECT_EQ(layout_error(placement_of({0, 1, 2, 3, 0})),
            "p.json: layer 1: 5 experts cannot be divided by moe_ep_size 2 (= world_size / "
            "moe_tp_size)");
  EXPECT_EQ(layout_error(placement_of({0, 1, 2, 3, 0, 1, 2, 3, 0, 1})),
            "p.json: layer 1: 10 experts; 2 ranks that hold all 4 have 8");
  ExpertPlacement uneven = placement_of({0, 1, 2, 3});
  uneven.layers[2] = {0, 1, 2, 3, 0, 1};
  EXPECT_EQ(layout_error(uneven),
            "p.json: layer 2: 6 experts, where layer 1 has 4; all layers must have as many");
  ExpertPlacement missing = placement_of({0, 1, 2, 3});
  missing.layers.erase(3);
  EXPECT_EQ(layout_error(missing), "p.json: layer 3 is missing (the MTP module's)");
  ExpertPlacement dense = placement_of({0, 1, 2, 3});
  dense.layers[0] = {0, 1, 2, 3};
  EXPECT_EQ(layout_error(dense),
            "p.json: layer 0 of the model has no routed experts; those that have: 1, 2, 3");
}

std::string file_error(const std::string& content) {
  const TemporaryDirectory directory;
  const auto file = directory.write("p.json", content);
  const std::string error = user_error([&] { read_expert_placement(file); });
  EXPECT_TRUE(error.starts_with(file.string() + ": ")) << error;
  return error.substr(std::min(error.size(), file.string().size() + 2));
}

TEST(ExpertPlacementFile, IsReadAsItIsWritten) {
  const TemporaryDirectory directory;
  const ExpertPlacement placement = placement_of({3, 0, 1, 2, 3, 3});

  const auto file = directory.write("p.json", placement_json(placement).dump());

  EXPECT_EQ(read_expert_placement(file).layers, placement.layers);
  EXPECT_EQ(read_expert_placement(file).source, file.string());
}

TEST(ExpertPlacementFile, ThatIsBrokenIsRefusedByName) {
  EXPECT_CONTAINS(file_error("{\"layers\": [{"), "not valid JSON");
  EXPECT_CONTAINS(file_error("[]"), "the file must be an object");
  EXPECT_CONTAINS(file_error("{}"), "layers must be a list");
  EXPECT_CONTAINS(file_error("{\"layers\": []}"), "layers must be a list");
  EXPECT_CONTAINS(file_error("{\"layers\": [7]}"), "layers[0]. must be an object");
  EXPECT_CONTAINS(file_error(R"({"layers": [{"experts": [0]}]})"), "layers[0].layer");
  EXPECT_CONTAINS(file_error(R"({"layers": [{"layer": 1}]})"), "layers[0].experts must have");
  EXPECT_CONTAINS(file_error(R"({"layers": [{"layer": 1, "experts": []}]})"), "must have");
  EXPECT_CONTAINS(file_error(R"({"layers": [{"layer": 1, "experts": [0, -1]}]})"),
                  "layers[0].experts");
  EXPECT_CONTAINS(file_error(R"({"layers": [{"layer": 1, "experts": [0, "a"]}]})"),
                  "layers[0].experts");
  EXPECT_CONTAINS(file_error(R"({"layers": [{"layer": -1, "experts": [0]}]})"), "layers[0].layer");
  EXPECT_CONTAINS(
      file_error(R"({"layers": [{"layer": 1, "experts": [0]}, {"layer": 1, "experts": [0]}]})"),
      "layer 1 is given twice");
  EXPECT_CONTAINS(user_error([] { read_expert_placement("/nowhere/p.json"); }), "/nowhere/p.json");
}

}  // namespace
}  // namespace troupe::model
