// The same bits on every parallel layout: logits, routing and draft logits of `troupe score`,
// tokens of `troupe run` without drafts and with them, `troupe verify`.
//
// The layouts cover all pairs of settings of parallel_config. The ordinary run takes the first few
// and one combination of drafts and sampling each (most of them in float32, where no rounding hides
// a difference); ./test.sh --layouts takes all: it sets TROUPE_ALL_LAYOUTS=1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/system/layout_case.h"
#include "tests/system/model_copy.h"
#include "tests/system/qwen3_moe_reference.h"

namespace troupe::system_tests {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr size_t kQuickLayouts = 12, kFewLayouts = 4, kQuantizedLayouts = 2;

bool all_layouts() { return std::getenv("TROUPE_ALL_LAYOUTS") != nullptr; }

std::vector<Layout> layouts(size_t quick) {
  std::vector<Layout> layouts = pairwise_layouts();
  if (!all_layouts()) layouts.resize(quick);
  return layouts;
}

TEST(Layouts, CoverEveryPairOfSettings) {
  const std::vector<Layout> layouts = pairwise_layouts();

  EXPECT_GE(layouts.size(), 40u);
  for (const Layout& layout : layouts) EXPECT_TRUE(is_possible(layout)) << to_string(layout);
  for (const SettingPair& pair : possible_pairs())
    EXPECT_TRUE(std::ranges::any_of(layouts, [&](const Layout& l) { return has(l, pair); }))
        << axes()[pair.first.first].key << " " << pair.first.second << " with "
        << axes()[pair.second.first].key << " " << pair.second.second;
}

TEST(Layouts, OfTheQuickRunUseEverySettingOnce) {
  const std::vector<Layout> all = pairwise_layouts();
  for (size_t axis = 0; axis < axes().size(); ++axis)
    for (const int value : axes()[axis].values)
      EXPECT_TRUE(std::any_of(all.begin(), all.begin() + kQuickLayouts,
                              [&](const Layout& layout) { return layout[axis] == value; }))
          << axes()[axis].key << " " << value;
}

void expect_same_bits(OneRank& one_rank, const std::vector<Layout>& layouts) {
  for (size_t i = 0; i < layouts.size(); ++i) {
    SCOPED_TRACE(to_string(layouts[i]));
    EXPECT_THAT(one_rank.differing_tensors(layouts[i]), IsEmpty());
    const int combinations = one_rank.max_next_n() + 1;
    for (int next_n = 0; next_n < combinations; ++next_n) {
      if (!all_layouts() && next_n != static_cast<int>(i) % combinations) continue;
      EXPECT_TRUE(one_rank.same_tokens(layouts[i], next_n)) << "next_n " << next_n;
    }
  }
}

struct Subject {
  std::string name;
  std::function<LayoutCase()> make;
  size_t quick_layouts = kFewLayouts;
};

std::ostream& operator<<(std::ostream& out, const Subject& subject) { return out << subject.name; }

class LayoutMatrix : public testing::TestWithParam<Subject> {};

TEST_P(LayoutMatrix, HasTheBitsOfOneRank) {
  OneRank one_rank(GetParam().make());

  expect_same_bits(one_rank, layouts(GetParam().quick_layouts));
}

// A config.json that lives as long as the program, for random weights.
std::filesystem::path shape_directory(const std::string& name, const json& config) {
  const std::filesystem::path directory = model::scratch_directory().path() / name;
  std::filesystem::create_directories(directory);
  std::ofstream(directory / "config.json") << config.dump();
  return directory;
}

json gpt_oss_config(const json& changes) {
  json config = json::parse(model::read_file(golden_directory("gpt-oss-tiny") / "config.json"));
  config.update({{"vocab_size", 333}});
  config.update(changes);
  return config;
}

std::vector<Subject> subjects() {
  std::vector<Subject> all;
  for (const std::string dtype : {"bfloat16", "float32"}) {
    all.push_back({"tiny_moe_" + dtype, [=] { return tiny_moe_case(dtype); },
                   dtype == "float32" ? kQuickLayouts : kFewLayouts});
    for (const std::string golden :
         {"ds3-tiny-bf16", "ds3-tiny-fp8", "ds-v2-lite-tiny", "gpt-oss-tiny"}) {
      std::string name = golden + "_" + dtype;
      std::ranges::replace(name, '-', '_');
      all.push_back({name, [=] { return golden_case(golden, dtype); }});
    }
    all.push_back({"random_qwen3_moe_" + dtype, [=] {
                     const json config = Qwen3MoeSizes{.vocab = 333}.config();
                     return random_weights_case(shape_directory("qwen3_moe", config), dtype);
                   }});
    // DeepSeek-V2 as the large one is: a query latent, and groups of experts scored by their best.
    all.push_back({"random_deepseek_v2_with_groups_" + dtype, [=] {
                     json config = json::parse(
                         model::read_file(golden_directory("ds-v2-lite-tiny") / "config.json"));
                     config.update({{"vocab_size", 333},
                                    {"q_lora_rank", 48},
                                    {"topk_method", "group_limited_greedy"},
                                    {"n_group", 4},
                                    {"topk_group", 2},
                                    {"routed_scaling_factor", 16.0}});
                     return random_weights_case(shape_directory("deepseek_v2", config), dtype);
                   }});
    // 24 query heads in groups of 8: with 4 attention ranks some have heads of two groups.
    all.push_back({"random_gpt_oss_uneven_kv_heads_" + dtype, [=] {
                     const json config =
                         gpt_oss_config({{"num_attention_heads", 24}, {"num_key_value_heads", 3}});
                     return random_weights_case(shape_directory("gpt_oss", config), dtype);
                   }});
  }
  all.push_back({"tiny_moe_with_comm_threads", [] {
                   LayoutCase result = tiny_moe_case("bfloat16");
                   result.config["runtime_config"]["comm_mode"] = "thread";
                   return result;
                 }});
  // tiny-moe has leaves of 44 and of 4 inputs: shards cut through groups of 32.
  for (const std::string format : {"int8", "int4", "mxfp4"})
    all.push_back({"tiny_moe_" + format, [=] { return tiny_moe_case("bfloat16", format); },
                   kQuantizedLayouts});
  all.push_back({"tiny_moe_int8_kv_cache",
                 [] {
                   LayoutCase result = tiny_moe_case("bfloat16");
                   result.config["runtime_config"]["kv_cache_format"] = "int8";
                   return result;
                 },
                 kQuantizedLayouts});
  all.push_back({"gpt_oss_tiny_int8_kv_cache",
                 [] {
                   LayoutCase result = golden_case("gpt-oss-tiny", "bfloat16");
                   result.config["runtime_config"]["kv_cache_format"] = "int8";
                   result.config["scheduler_config"]["block_size"] = 4;
                   return result;
                 },
                 kQuantizedLayouts});
  return all;
}

INSTANTIATE_TEST_SUITE_P(Of, LayoutMatrix, testing::ValuesIn(subjects()),
                         [](const auto& test) { return test.param.name; });

// A model directory with a config.json alone, its widths changed.
class OddWidths : public testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path model(const json& changes) const {
    json config = json::parse(model::read_file(golden_directory("ds3-tiny-bf16") / "config.json"));
    config.update({{"intermediate_size", 264}, {"vocab_size", 333}, {"v_head_dim", 20}});
    config.update(changes);
    directory_.write("config.json", config.dump());
    return directory_.path();
  }
  static Layout evenly(int size) {
    const int heads = std::min(size, 8);
    return {size, heads, size, size, size, size, size, heads, 0};
  }

  model::TemporaryDirectory directory_;
};

TEST_P(OddWidths, NeedNotBeDividedBySixteen) {
  for (const int width : {40, 72}) {
    SCOPED_TRACE(fmt::format("moe_intermediate_size {}", width));
    OneRank one_rank(random_weights_case(model({{"moe_intermediate_size", width}}), GetParam()));

    expect_same_bits(one_rank, {evenly(2), evenly(4), evenly(8), evenly(16)});
  }
}

TEST_P(OddWidths, SixteenRanksShareSixteenHeads) {
  const auto directory = model({{"num_attention_heads", 16}, {"num_key_value_heads", 16}});
  OneRank one_rank(random_weights_case(directory, GetParam()));

  expect_same_bits(one_rank,
                   {{16, 16, 16, 16, 16, 16, 16, 16, 0}, {16, 16, 1, 16, 1, 1, 1, 16, 1}});
}

// Sizes that do not divide 16: other bits, near the same logits.
TEST_P(OddWidths, RunOnThreeSixAndTwelveRanks) {
  const double tolerance = std::string(GetParam()) == "float32" ? 1e-4 : 0.3;
  const auto directory = model({{"num_attention_heads", 12}, {"num_key_value_heads", 12}});
  const OneRank one_rank(random_weights_case(directory, GetParam()));
  for (const int size : {3, 6, 12}) {
    SCOPED_TRACE(fmt::format("{} ranks", size));
    const Layout layout{size, size, size, size, size, size, size, size, 0};
    const json config = with_layout(one_rank.layout_case().config, layout);

    EXPECT_LE(one_rank.logits_difference(config), tolerance);

    const model::TemporaryDirectory files;
    const Ended verified = run_troupe(command_line("verify", config, {}, files));
    EXPECT_EQ(verified.status, 0) << verified.out << verified.err;
    EXPECT_THAT(verified.out, HasSubstr("bits are not promised"));
  }
}

INSTANTIATE_TEST_SUITE_P(In, OddWidths, testing::Values("bfloat16", "float32"),
                         [](const auto& test) { return test.param; });

class Verify : public testing::TestWithParam<Subject> {};

TEST_P(Verify, FindsEveryOperationIdentical) {
  const LayoutCase subject = GetParam().make();
  for (const Layout& layout : {Layout{4, 4, 2, 4, 2, 4, 4, 1, 0}, Layout{8, 4, 4, 2, 8, 2, 8, 2, 1},
                               Layout{16, 1, 1, 1, 1, 1, 1, 1, 0}}) {
    SCOPED_TRACE(to_string(layout));
    const model::TemporaryDirectory files;

    const Ended ended =
        run_troupe(command_line("verify", with_layout(subject.config, layout), {}, files));

    EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
    EXPECT_THAT(ended.out, HasSubstr("identical: "));
    EXPECT_THAT(ended.out, HasSubstr(fmt::format("world {} ", layout[0])));
    EXPECT_THAT(ended.out, HasSubstr("= world 1\n"));
    EXPECT_EQ(ended.err, "");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Of, Verify,
    testing::Values(Subject{"tiny_moe", [] { return tiny_moe_case("bfloat16"); }},
                    Subject{"ds_v2_lite_tiny",
                            [] { return golden_case("ds-v2-lite-tiny", "float32"); }}),
    [](const auto& test) { return test.param.name; });

TEST(ManyRanks, HaveTheBitsOfOne) {
  json config = json::parse(model::read_file(golden_directory("ds3-tiny-bf16") / "config.json"));
  config.update({{"n_routed_experts", 256},
                 {"n_group", 8},
                 {"topk_group", 4},
                 {"num_experts_per_tok", 8},
                 {"moe_intermediate_size", 32},
                 {"vocab_size", 333}});
  OneRank one_rank(random_weights_case(shape_directory("many_experts", config), "bfloat16"));

  for (const int world : {8, 64, 128})
    EXPECT_THAT(one_rank.differing_tensors({world, 8, 1, 4, 1, 8, 1, 1, 0}), IsEmpty()) << world;
}

}  // namespace
}  // namespace troupe::system_tests
