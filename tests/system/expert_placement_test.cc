// Experts that lie on several ranks: the same bits, a more even load.
#include <gtest/gtest.h>

#include <numeric>

#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

namespace fs = std::filesystem;

constexpr int kExperts = 16, kTopk = 4, kMtpLayer = 6;

std::vector<Ids> stories() {
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  std::vector<Ids> prompts;
  for (const int i : {0, 1, 2, 3, 4, 5, 6, 7})
    prompts.push_back(golden["cases"][i % golden["cases"].size()]["prompt_ids"]);
  return prompts;
}

json config_of(int ranks, const std::string& dtype = "bfloat16") {
  json config = configuration(tiny_moe(), ranks, dtype);
  config["scheduler_config"] = {{"batch_size", 8}, {"max_new_tokens", 12}};
  return config;
}

// What `troupe eplb` makes of a report: the placement's file in `directory`.
fs::path placed(const json& report, const json& config, int redundant,
                const model::TemporaryDirectory& directory) {
  const fs::path output = directory.path() / "placement.json";
  auto words = command_line("eplb", config, {}, directory);
  words.insert(words.end(), {"--counts", directory.write("report.json", report.dump()),
                             "--redundant", std::to_string(redundant), "--output", output});
  const Ended ended = run_troupe(words);
  EXPECT_EQ(ended.status, 0) << ended.err;
  return output;
}

json with_placement(json config, const fs::path& file) {
  config["runtime_config"]["expert_placement"] = file.string();
  return config;
}

// Every row that the gate sends to an expert is counted there, once.
TEST(ExpertLoad, CountsWhatTheGateHasChosen) {
  const json config = config_of(4);
  const std::vector<Ids> prompts = stories();
  json prefill_only = config;
  prefill_only["scheduler_config"]["max_new_tokens"] = 1;

  const json load = generate(prefill_only, prompts)["metrics"]["expert_load"];

  const Dump dump(config, prompts, "router");
  ASSERT_EQ(load.size(), 5u);
  for (const json& layer : load) {
    std::vector<int64_t> expected(kExperts), by_rank(4);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const std::string name = fmt::format("router_ids.{}.{}", i, layer["layer"].get<int>());
      for (const int32_t expert : values<int32_t>(dump.tensor(name))) {
        ++expected[expert];
        ++by_rank[expert / 4];
      }
    }
    EXPECT_EQ(layer["counts"], json(expected)) << layer["layer"];
    EXPECT_EQ(layer["rank_counts"], json(by_rank)) << layer["layer"];
    const double mean = std::accumulate(by_rank.begin(), by_rank.end(), 0.0) / 4;
    EXPECT_NEAR(layer["rank_imbalance"], static_cast<double>(std::ranges::max(by_rank)) / mean,
                1e-12);
  }
}

double mean_imbalance(const json& report) {
  double sum = 0;
  const json& load = report["metrics"]["expert_load"];
  for (const json& layer : load) sum += layer["rank_imbalance"].get<double>();
  return sum / static_cast<double>(load.size());
}

TEST(RedundantExperts, MakeTheRanksLoadMoreEvenAndChangeNoToken) {
  const json config = config_of(4);
  const json before = generate(config, stories());
  const model::TemporaryDirectory directory;

  const json after =
      generate(with_placement(config, placed(before, config, 8, directory)), stories());

  EXPECT_EQ(output_ids(after), output_ids(before));
  EXPECT_LT(mean_imbalance(after), mean_imbalance(before));
  const json &was = before["metrics"]["expert_load"], &is = after["metrics"]["expert_load"];
  ASSERT_EQ(is.size(), was.size());
  for (size_t i = 0; i < is.size(); ++i) EXPECT_EQ(is[i]["counts"], was[i]["counts"]);
}

struct Case {
  const char* name;
  json parallel;
  int redundant;
  const char* dispatch = "fused";
};
std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class RedundantExpertsWith : public testing::TestWithParam<Case> {};

TEST_P(RedundantExpertsWith, HaveTheBitsOfOneRankWithout) {
  const json one = config_of(1, "float32");
  json many = one;
  many["parallel_config"].update(GetParam().parallel);
  many["model_config"]["custom_params"]["moe_chunk_max_len"] = 3;  // so that rounds follow
  many["runtime_config"]["moe_dispatch"] = GetParam().dispatch;
  json drafting = one;
  drafting["model_config"]["next_n"] = 1;
  const model::TemporaryDirectory directory;
  const fs::path file =
      placed(generate(drafting, stories()), many, GetParam().redundant, directory);

  const Dump expected(one, stories(), "logits,router,mtp");
  const Dump found(with_placement(many, file), stories(), "logits,router,mtp");

  for (const auto& [name, tensor] : expected.tensors())
    EXPECT_TRUE(same_bytes(tensor, found.tensor(name))) << name;
  many["model_config"]["next_n"] = 2;
  EXPECT_EQ(output_ids(generate(with_placement(many, file), stories())),
            output_ids(generate(one, stories())));
}

INSTANTIATE_TEST_SUITE_P(
    On, RedundantExpertsWith,
    testing::Values(
        Case{"OneRank", {{"world_size", 1}}, 0}, Case{"TwoRanks", {{"world_size", 2}}, 6},
        Case{"ThreeRanks", {{"world_size", 3}}, 2}, Case{"EightRanks", {{"world_size", 8}}, 16},
        Case{"ExpertsInParts", {{"world_size", 8}, {"moe_tp_size", 2}, {"attn_tp_size", 4}}, 4},
        Case{"DoubleRouting", {{"world_size", 4}}, 4, "double_routing"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(RedundantExperts, AreTracedLikeOthers) {
  json config = config_of(4);
  const model::TemporaryDirectory directory;
  config = with_placement(config, placed(generate(config, stories()), config, 8, directory));
  auto words = command_line("run", config, stories(), directory);
  words.insert(words.end(), {"--trace", directory.path() / "trace"});

  const Ended ended = run_troupe(words);

  EXPECT_EQ(ended.status, 0) << ended.err;
}

TEST(RedundantExperts, VerifyAgainstOneRank) {
  json config = config_of(4);
  const model::TemporaryDirectory directory;
  config = with_placement(config, placed(generate(config, stories()), config, 4, directory));

  const Ended ended = run_troupe(command_line("verify", config, {}, directory));

  EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
}

// 8 sequences on 4 ranks bring as many rows each in decode; prompts differ.
TEST(ForceEplb, DealsRowsOutEvenly) {
  json config = config_of(4);
  config["model_config"]["force_eplb"] = true;
  const std::vector<Ids> prompts(8, stories()[0]);

  const json report = generate(config, prompts);

  for (const json& layer : report["metrics"]["expert_load"]) {
    EXPECT_LT(layer["rank_imbalance"].get<double>(), 1.01) << layer["layer"];
    EXPECT_LT(layer["expert_imbalance"].get<double>(), 1.05) << layer["layer"];
  }
}

std::string eplb_error(const json& config, const std::vector<std::string>& more) {
  const model::TemporaryDirectory directory;
  auto words = command_line("eplb", config, {}, directory);
  words.insert(words.end(), more.begin(), more.end());
  if (std::ranges::find(words, "--output") == words.end())
    words.insert(words.end(), {"--output", directory.path() / "out.json"});
  const Ended ended = run_troupe(words);
  EXPECT_EQ(ended.status, 2) << ended.out;
  EXPECT_FALSE(fs::exists(directory.path() / "out.json"));
  return ended.err;
}

TEST(Eplb, RefusesWhatCannotBe) {
  const model::TemporaryDirectory files;
  const std::string counts = files.write(
      "counts.json", R"({"metrics": {"expert_load": [{"layer": 1, "counts": [1, 2, 3]}]}})");
  const std::string none = files.write("none.json", R"({"metrics": {"expert_load": []}})");

  EXPECT_CONTAINS(eplb_error(config_of(4), {"--counts", counts, "--redundant", "4"}),
                  "counts has 3 numbers; the model has 16 experts");
  EXPECT_CONTAINS(eplb_error(config_of(4), {"--counts", none, "--redundant", "4"}),
                  none + ": metrics.expert_load must be a list");
  EXPECT_CONTAINS(eplb_error(config_of(4), {"--counts", counts, "--redundant", "3"}),
                  "--redundant 3: 19 experts with it cannot be divided by moe_ep_size 4; use 4");
  EXPECT_CONTAINS(eplb_error(config_of(4), {"--counts", counts, "--redundant", "400"}),
                  "must be from 0 to 48");
  EXPECT_CONTAINS(
      eplb_error(config_of(4), {"--counts", counts, "--redundant", "4", "--nodes", "3"}),
      "--nodes 3: does not divide moe_ep_size 4");
}

TEST(Run, RefusesAPlacementThatDoesNotFit) {
  const model::TemporaryDirectory directory;
  const auto error = [&](const std::string& content, bool forced = false) {
    json config = with_placement(config_of(2), directory.write("p.json", content));
    config["model_config"]["force_eplb"] = forced;
    return run_troupe(command_line("run", config, {{1, 2}}, directory)).err;
  };

  EXPECT_CONTAINS(error("{"), "p.json: not valid JSON");
  const std::string one_layer = R"({"layers": [{"layer": 1, "experts": [0]}]})";
  EXPECT_CONTAINS(error(one_layer), "p.json: layer 2 is missing");
  EXPECT_CONTAINS(error(one_layer, true), "contradict each other");
}

}  // namespace
}  // namespace troupe::system_tests
