// The reference outputs of five random-weight checkpoints, and the continuations of the model that
// ships with the project: the same numbers whatever the number of ranks.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/system/golden.h"
#include "tests/system/model_copy.h"

namespace troupe::system_tests {
namespace {

// One golden directory on a number of ranks.
class GoldenModel : public testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  GoldenModel() : golden_(std::get<0>(GetParam())) {}

  json config(const std::string& dtype) const {
    return configuration(golden_directory(std::get<0>(GetParam())), std::get<1>(GetParam()), dtype);
  }

  Golden golden_;
};

TEST_P(GoldenModel, LogitsRoutingAndDraftLogitsAreTheReferencesInFloat32) {
  const Dump dump(config("float32"), golden_.prompt_tokens(), golden_.dump_items());

  const Excess excess = float32_excess(golden_, dump);

  EXPECT_LE(excess.logits, 1);
  EXPECT_LE(excess.mtp_logits, 1);
  EXPECT_LE(excess.router_weights, 1);
  EXPECT_EQ(excess.misrouted, 0);
}

TEST_P(GoldenModel, ContinuesAsTheReferenceInFloat32) {
  const auto outputs = output_ids(generate(config("float32"), golden_.prompt_tokens()));

  ASSERT_EQ(outputs.size(), golden_.prompts().size());
  for (size_t i = 0; i < outputs.size(); ++i)
    EXPECT_EQ(outputs[i], golden_.prompts()[i].greedy) << golden_.prompts()[i].id;
}

// For an fp8 checkpoint the reference is "logits" too, the one with exact weights: fp8 codes and
// scales stay exact in bfloat16 mode, but for kv_b_proj, which is rounded to bf16. "logits_w_bf16"
// has all weights rounded, and "logits_fp8_act" quantised activations: both route tokens elsewhere.
TEST_P(GoldenModel, StaysNearTheReferenceInBfloat16) {
  const Dump dump(config("bfloat16"), golden_.prompt_tokens(), golden_.dump_items());

  const Excess excess = bfloat16_excess(golden_, dump);

  EXPECT_LE(excess.logits, 1);
  EXPECT_LE(excess.mtp_logits, 1);
}

TEST_P(GoldenModel, BeginsAsTheReferenceInBfloat16) {
  const auto outputs = output_ids(generate(config("bfloat16"), golden_.prompt_tokens()));

  ASSERT_EQ(outputs.size(), golden_.prompts().size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& [id, tokens, greedy, prefix, mtp_prefix, steps] = golden_.prompts()[i];
    ASSERT_GE(static_cast<int>(outputs[i].size()), steps);
    EXPECT_TRUE(std::equal(greedy.begin(), greedy.begin() + steps, outputs[i].begin())) << id;
  }
}

INSTANTIATE_TEST_SUITE_P(On, GoldenModel,
                         testing::Combine(testing::Values("ds3-tiny-bf16", "ds3-tiny-fp8",
                                                          "ds-v2-lite-tiny", "kimi-k2-tiny",
                                                          "gpt-oss-tiny"),
                                          testing::Values(1, 2, 4, 8)),
                         [](const auto& test) {
                           std::string name = fmt::format("{}_{}_ranks", std::get<0>(test.param),
                                                          std::get<1>(test.param));
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

// float32 mode widens fp8 linears to bf16 where told to, but keeps kv_b_proj exact; the reference
// with rounded weights has rounded that one too.
TEST(Fp8Golden, WidenedToBf16GivesTheReferenceWithRoundedWeights) {
  const Golden golden("ds3-tiny-fp8");
  ModelCopy copy(golden_directory("ds3-tiny-fp8"));
  copy.round_to_bf16("kv_b_proj.weight");
  json config = configuration(copy.write(), 4, "float32");
  config["runtime_config"]["weight_format"] = "bf16";

  const Dump dump(config, golden.prompt_tokens(), golden.dump_items());

  EXPECT_LE(float32_excess(golden, dump, "logits_w_bf16").logits, 1);
  EXPECT_GE(float32_excess(golden, dump, "logits").logits, 10);
}

// models/tiny-moe: float32 continuations and what its MTP layer drafts.
class TinyMoe : public testing::TestWithParam<int> {};

TEST_P(TinyMoe, WritesTheReferenceTextWithTheReferenceDrafts) {
  const int next_n = GetParam();
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  std::vector<Ids> prompts;
  for (const json& c : golden["cases"]) prompts.push_back(c["prompt_ids"]);
  json config = configuration(tiny_moe(), 4, "float32");
  config["model_config"]["next_n"] = next_n;
  config["scheduler_config"]["max_new_tokens"] = golden["max_new_tokens"];

  const json report = generate(config, prompts);

  const std::vector<Ids> outputs = output_ids(report);
  ASSERT_EQ(outputs.size(), prompts.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const json& expected = golden["cases"][i];
    EXPECT_EQ(outputs[i], expected["continuation_ids"].get<Ids>()) << expected["prompt"];
    int drafted = 0, accepted = 0;
    if (next_n > 0) {
      const json& mtp = expected[fmt::format("mtp_{}", next_n)];
      for (const json& drafts : mtp["drafts"]) drafted += static_cast<int>(drafts.size());
      for (const int count : mtp["accepted"]) accepted += count;
    }
    EXPECT_EQ(report["outputs"][i]["mtp"]["drafted"], drafted) << expected["prompt"];
    EXPECT_EQ(report["outputs"][i]["mtp"]["accepted"], accepted) << expected["prompt"];
  }
}

INSTANTIATE_TEST_SUITE_P(NextN, TinyMoe, testing::Values(0, 1, 2, 3));

}  // namespace
}  // namespace troupe::system_tests
