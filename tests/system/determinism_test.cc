// The same bits whatever the layout: logits, routing and draft logits of tiny-moe as `troupe score`
// dumps them, and the tokens of `troupe run`.
#include <gtest/gtest.h>

#include "layers/isa.h"
#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

constexpr const char* kItems = "logits,router,mtp";

// Openings of one token to more than two KV blocks, from what the model wrote itself.
std::vector<Ids> prompts() {
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  const auto story = [&](int index) {
    Ids ids = golden["cases"][index]["prompt_ids"];
    const Ids continuation = golden["cases"][index]["continuation_ids"];
    ids.insert(ids.end(), continuation.begin(), continuation.end());
    return ids;
  };
  Ids longest;
  for (const int index : {0, 1, 2, 3}) {
    const Ids part = story(index);
    longest.insert(longest.end(), part.begin(), part.end());
  }
  return {story(4), {0}, longest, golden["cases"][5]["prompt_ids"], story(6)};
}

void expect_same_dump(const Dump& a, const Dump& b) {
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const auto& [name, tensor] : a.tensors())
    EXPECT_TRUE(same_bytes(tensor, b.tensor(name))) << name;
}

// Dumps are compared with this one rank's, everything at its default.
class SameBits : public testing::TestWithParam<const char*> {
 protected:
  json config(int world_size) const { return configuration(tiny_moe(), world_size, GetParam()); }
  static Dump dump(const json& configuration) { return Dump(configuration, prompts(), kItems); }

  // One rank and `world_size` ranks with `key` of `section` set to each of `settings`.
  void expect_no_influence(const std::string& section, const std::string& key,
                           const std::vector<int>& settings, int world_size) const {
    const Dump expected = dump(config(1));
    for (const int setting : settings) {
      SCOPED_TRACE(fmt::format("{}: {}", key, setting));
      json changed = config(world_size);
      changed[section][key] = setting;
      expect_same_dump(expected, dump(changed));
    }
  }
};

TEST_P(SameBits, OnAnyNumberOfRanks) {
  const Dump expected = dump(config(1));
  for (const int world_size : {2, 4, 8, 16}) {
    SCOPED_TRACE(fmt::format("{} ranks", world_size));
    expect_same_dump(expected, dump(config(world_size)));
  }
}

TEST_P(SameBits, ForAPromptAloneAndAmongOthers) {
  const Dump together = dump(config(2));
  for (const size_t i : {1, 2, 4}) {
    SCOPED_TRACE(fmt::format("prompt {}", i));
    const Dump alone(config(1), {prompts()[i]}, kItems);
    for (const auto& [name, tensor] : alone.tensors()) {
      std::string in_batch = name;  // "logits.0", "router_ids.0.LAYER"
      in_batch.replace(name.find(".0") + 1, 1, fmt::format("{}", i));
      EXPECT_TRUE(same_bytes(tensor, together.tensor(in_batch))) << name;
    }
  }
}

TEST_P(SameBits, ForAnySizeOfBatch) {
  expect_no_influence("scheduler_config", "batch_size", {1, 2, 3}, 1);
}

TEST_P(SameBits, ForAnyChunksOfPrefill) {
  expect_no_influence("scheduler_config", "max_prefill_tokens", {1, 7, 64}, 2);
}

TEST_P(SameBits, ForAnySizeOfKvBlocks) {
  expect_no_influence("scheduler_config", "block_size", {1, 16, 128}, 2);
}

TEST_P(SameBits, ForAnyRoundsOfDispatch) {
  const Dump expected = dump(config(1));
  for (const int rows : {1, 3}) {
    SCOPED_TRACE(rows);
    json changed = config(4);
    changed["model_config"]["custom_params"]["moe_chunk_max_len"] = rows;
    expect_same_dump(expected, dump(changed));
  }
}

TEST_P(SameBits, ForAnyFormOfDispatch) {
  json double_routing = config(4);
  double_routing["runtime_config"]["moe_dispatch"] = "double_routing";
  expect_same_dump(dump(config(1)), dump(double_routing));
}

TEST_P(SameBits, ForAnyNumberOfRanksWithInt8Payloads) {
  json one = config(1), four = config(4);
  for (json* config : {&one, &four}) (*config)["runtime_config"]["moe_payload"] = "int8";
  expect_same_dump(dump(one), dump(four));
}

TEST_P(SameBits, WhenWindowsAreSmallerThanTheMessages) {
  expect_no_influence("runtime_config", "comm_buffer_mb", {1}, 16);
}

TEST_P(SameBits, WhetherTheSharedExpertComesBesideTheDispatchOrBeforeIt) {
  json before = config(4);
  before["model_config"]["custom_params"]["enable_multi_streams"] = false;
  expect_same_dump(dump(config(1)), dump(before));
}

TEST_P(SameBits, ForAnyThreadsOfARank) {
  expect_no_influence("runtime_config", "threads_per_rank", {2, 3}, 2);
}

TEST_P(SameBits, WithEachThreadOnACore) {
  const Dump expected = dump(config(1));
  json changed = config(2);
  changed["runtime_config"] = {{"threads_per_rank", 2}, {"pin", true}};
  expect_same_dump(expected, dump(changed));
}

TEST_P(SameBits, OnEveryInstructionSet) {
  const std::vector<Ids> few{prompts()[1], prompts()[3]};  // the scalar path is slow
  const Dump expected(config(2), few, kItems, {{"TROUPE_ISA", "scalar"}});
  for (const layers::Isa isa : layers::supported_isas()) {
    // Its products have bits of their own, close to the goldens like the others'.
    if (isa == layers::Isa::kAvx512Bf16 && std::string_view(GetParam()) == "bfloat16") continue;
    SCOPED_TRACE(layers::isa_name(isa));
    const Dump found(config(2), few, kItems, {{"TROUPE_ISA", layers::isa_name(isa)}});
    expect_same_dump(expected, found);
  }
}

INSTANTIATE_TEST_SUITE_P(In, SameBits, testing::Values("float32", "bfloat16"),
                         [](const auto& test) { return test.param; });

struct Sampling {
  const char* name;
  double temperature, top_p;
};

class SameTokens : public testing::TestWithParam<Sampling> {
 protected:
  static json config(int world_size = 1) {
    json config = configuration(tiny_moe(), world_size, "bfloat16");
    config["data_config"] = {
        {"temperature", GetParam().temperature}, {"top_p", GetParam().top_p}, {"seed", 20260101}};
    return config;
  }
  static std::vector<Ids> tokens(const json& config) {
    return output_ids(generate(config, prompts()));
  }
};

TEST_P(SameTokens, WithAnyNumberOfDrafts) {
  const auto expected = tokens(config());
  for (const int next_n : {1, 2, 3}) {
    SCOPED_TRACE(fmt::format("next_n {}", next_n));
    json changed = config();
    changed["model_config"]["next_n"] = next_n;
    EXPECT_EQ(tokens(changed), expected);
  }
}

TEST_P(SameTokens, OnAnyNumberOfRanksWithAnyBatch) {
  const auto expected = tokens(config());
  for (const int world_size : {2, 4, 8, 16})
    for (const int batch_size : {1, world_size + 1}) {
      SCOPED_TRACE(fmt::format("{} ranks, batch_size {}", world_size, batch_size));
      json changed = config(world_size);
      changed["scheduler_config"]["batch_size"] = batch_size;
      changed["model_config"]["next_n"] = batch_size == 1 ? 1 : 0;
      EXPECT_EQ(tokens(changed), expected);
    }
}

TEST_P(SameTokens, WhenStepsAreRecordedAndReplayed) {
  const auto expected = tokens(config());
  for (const int world_size : {1, 4})
    for (const bool superkernel : {false, true}) {
      SCOPED_TRACE(fmt::format("{} ranks, superkernel {}", world_size, superkernel));
      json changed = config(world_size);
      changed["model_config"].update({{"exe_mode", "graph"}, {"next_n", world_size == 1 ? 0 : 2}});
      changed["model_config"]["custom_params"]["enable_superkernel"] = superkernel;
      changed["runtime_config"]["threads_per_rank"] = 2;
      changed["scheduler_config"]["batch_size"] = 3;
      EXPECT_EQ(tokens(changed), expected);
    }
}

INSTANTIATE_TEST_SUITE_P(When, SameTokens,
                         testing::Values(Sampling{"Greedy", 0, 1}, Sampling{"Sampled", 0.8, 0.95}),
                         [](const auto& test) { return test.param.name; });

TEST(SampledText, IsTheSeedsAndOfTheSamePromptAlwaysTheSame) {
  const Ids prompt = prompts()[0];
  const auto sample = [&](int seed) {
    json config = configuration(tiny_moe(), 2, "bfloat16");
    config["data_config"] = {{"temperature", 0.8}, {"top_p", 0.95}, {"seed", seed}};
    return output_ids(generate(config, {prompt, prompt, prompt}));
  };

  const auto first = sample(1);

  EXPECT_EQ(sample(1), first);
  EXPECT_EQ(first[1], first[0]);
  EXPECT_EQ(first[2], first[0]);
  EXPECT_NE(sample(2)[0], first[0]);
}

}  // namespace
}  // namespace troupe::system_tests
