// Each part of the computation moves the logits far beyond the goldens' tolerance when it is wrong:
// a golden test that passes has seen them all. What is made wrong here is the checkpoint, so that
// the program itself is the one that ships.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "tests/system/golden.h"
#include "tests/system/model_copy.h"

namespace troupe::system_tests {
namespace {

using model::PlainTensor;

constexpr double kClearly = 10;  // times the tolerance

Excess excess_of(const std::string& golden_name, ModelCopy& copy) {
  const Golden golden(golden_name);
  const Dump dump(configuration(copy.write(), 2, "float32"), golden.prompt_tokens(),
                  golden.dump_items());
  return float32_excess(golden, dump);
}

void set_ones(const std::string&, PlainTensor& tensor) {
  ASSERT_EQ(tensor.dtype, "BF16");
  for (size_t i = 0; i < tensor.bytes.size(); i += 2) tensor.bytes.replace(i, 2, "\x80\x3f");
}

void set_zeros(const std::string&, PlainTensor& tensor) { std::ranges::fill(tensor.bytes, '\0'); }

void swap_column_halves(const std::string&, PlainTensor& tensor) {
  const size_t row = tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
  for (size_t begin = 0; begin < tensor.bytes.size(); begin += row)
    std::rotate(tensor.bytes.begin() + begin, tensor.bytes.begin() + begin + row / 2,
                tensor.bytes.begin() + begin + row);
}

// The scales of blocks that the matrix fills in part become those of the blocks before them.
void use_neighbours_scale(ModelCopy& copy) {
  copy.change_tensors("_scale_inv", [&](const std::string& name, PlainTensor& scales) {
    const PlainTensor& weight =
        copy.tensors().at(name.substr(0, name.size() - strlen("_scale_inv")));
    const auto rows = static_cast<size_t>(scales.shape[0]),
               cols = static_cast<size_t>(scales.shape[1]);
    const auto scale = [&](size_t row, size_t col) {
      return scales.bytes.data() + (row * cols + col) * sizeof(float);
    };
    if (weight.shape[1] % 128 != 0 && cols > 1)
      for (size_t row = 0; row < rows; ++row)
        std::memcpy(scale(row, cols - 1), scale(row, cols - 2), sizeof(float));
    if (weight.shape[0] % 128 != 0 && rows > 1)
      std::memcpy(scale(rows - 1, 0), scale(rows - 2, 0), cols * sizeof(float));
  });
}

void swap_gate_and_up(ModelCopy& copy) {
  copy.change_tensors("gate_proj.weight", [&](const std::string& name, PlainTensor& gate) {
    std::string up_name = name;
    up_name.replace(name.size() - strlen("gate_proj.weight"), strlen("gate"), "up");
    std::swap(gate.bytes, copy.tensors().at(up_name).bytes);
  });
}

struct Variant {
  const char* name;
  const char* golden;
  std::function<void(ModelCopy&)> change;
  bool only_mtp = false;  // the main model stays right
};

std::ostream& operator<<(std::ostream& out, const Variant& variant) { return out << variant.name; }

class WrongVariant : public testing::TestWithParam<Variant> {};

TEST_P(WrongVariant, IsFarFromTheGolden) {
  ModelCopy copy(golden_directory(GetParam().golden));
  GetParam().change(copy);

  const Excess excess = excess_of(GetParam().golden, copy);

  EXPECT_GE(excess.worst(), kClearly);
  if (GetParam().only_mtp) {
    EXPECT_LE(excess.logits, 1);
    EXPECT_GE(excess.mtp_logits, kClearly);
  } else {
    EXPECT_GE(excess.logits, kClearly);
  }
}

std::function<void(ModelCopy&)> all(const char* ending,
                                    void (*change)(const std::string&, PlainTensor&)) {
  return [=](ModelCopy& copy) { copy.change_tensors(ending, change); };
}

constexpr const char* kV3 = "ds3-tiny-bf16";
constexpr const char* kFp8 = "ds3-tiny-fp8";
constexpr const char* kV2 = "ds-v2-lite-tiny";
constexpr const char* kGptOss = "gpt-oss-tiny";

// A sink of minus infinity takes no share of the softmax.
void set_minus_infinity(const std::string&, PlainTensor& tensor) {
  ASSERT_EQ(tensor.dtype, "BF16");
  for (size_t i = 0; i < tensor.bytes.size(); i += 2) tensor.bytes.replace(i, 2, "\x80\xff");
}

// gate * sigmoid(alpha gate) * up instead of (up + 1): the program adds 1 to what is 1 less.
void subtract_one_from_up(const std::string&, PlainTensor& bias) {
  ASSERT_EQ(bias.dtype, "BF16");
  for (int64_t i = 1; i < std::ssize(bias.bytes) / 2; i += 2) {
    const Bf16 less = to_bf16(to_float(Bf16{bias.at<uint16_t>(i)}) - 1);
    std::memcpy(&bias.bytes[2 * i], &less.bits, 2);
  }
}

void swap_nibbles(const std::string&, PlainTensor& blocks) {
  for (char& c : blocks.bytes) {
    const auto byte = static_cast<uint8_t>(c);
    c = static_cast<char>(byte << 4 | byte >> 4);
  }
}

void double_scales(const std::string&, PlainTensor& scales) {
  for (char& c : scales.bytes) ++c;
}

// The first half of the rows were the gates, the second half the ups.
void halves_for_pairs(const std::string&, PlainTensor& rows) {
  const auto experts = static_cast<size_t>(rows.shape[0]),
             count = static_cast<size_t>(rows.shape[1]);
  const size_t row = rows.bytes.size() / experts / count;
  const std::string before = rows.bytes;
  for (size_t e = 0; e < experts; ++e)
    for (size_t i = 0; i < count; ++i)
      rows.bytes.replace((e * count + i) * row, row, before,
                         (e * count + i / 2 + i % 2 * count / 2) * row, row);
}

INSTANTIATE_TEST_SUITE_P(
    Of, WrongVariant,
    testing::Values(
        Variant{"NoMscale", kV3,
                [](ModelCopy& copy) {
                  copy.config["rope_scaling"]["mscale"] = 0;
                  copy.config["rope_scaling"]["mscale_all_dim"] = 0;
                }},
        Variant{"NoYarn", kV3, [](ModelCopy& copy) { copy.config["rope_scaling"] = nullptr; }},
        Variant{"OtherRopeTheta", kV3, [](ModelCopy& copy) { copy.config["rope_theta"] = 5000; }},
        Variant{"NoRoutedScalingFactor", kV3,
                [](ModelCopy& copy) { copy.config["routed_scaling_factor"] = 1; }},
        Variant{"NoGroupLimit", kV3,
                [](ModelCopy& copy) { copy.config["topk_group"] = copy.config["n_group"]; }},
        Variant{"WeightsNotNormalised", kV3,
                [](ModelCopy& copy) { copy.config["norm_topk_prob"] = false; }},
        Variant{"WeightsNormalised", kV2,
                [](ModelCopy& copy) { copy.config["norm_topk_prob"] = true; }},
        Variant{"NoCorrectionBias", kV3, all("e_score_correction_bias", set_zeros)},
        Variant{"NoQANorm", kV3, all("q_a_layernorm.weight", set_ones)},
        Variant{"NoKvANorm", kV3, all("kv_a_layernorm.weight", set_ones)},
        Variant{"NoInputNorm", kV2, all("input_layernorm.weight", set_ones)},
        Variant{"NoPostAttentionNorm", kV2, all("post_attention_layernorm.weight", set_ones)},
        Variant{"NoFinalNorm", kV2, all("model.norm.weight", set_ones)},
        Variant{"NoSharedExpert", kV3, all("shared_experts.down_proj.weight", set_zeros)},
        Variant{"GateAndUpSwapped", kV2, swap_gate_and_up},
        Variant{"EhProjHalvesSwapped", kV3, all("eh_proj.weight", swap_column_halves), true},
        Variant{"NoEnorm", kV3, all("enorm.weight", set_ones), true},
        Variant{"NoHnorm", kV3, all("hnorm.weight", set_ones), true},
        Variant{"NoSharedHeadNorm", kV3, all("shared_head.norm.weight", set_ones), true},
        Variant{"EdgeBlocksUseTheirNeighboursScale", kFp8, use_neighbours_scale},
        Variant{"ScalesOfQBLost", kFp8,
                all("q_b_proj.weight_scale_inv",
                    [](const std::string&, PlainTensor& scales) {
                      const float one = 1;
                      for (size_t i = 0; i < scales.bytes.size(); i += sizeof one)
                        std::memcpy(scales.bytes.data() + i, &one, sizeof one);
                    })},
        Variant{"NoSinks", kGptOss, all("sinks", set_minus_infinity)},
        Variant{"NoWindow", kGptOss, [](ModelCopy& copy) { copy.config["sliding_window"] = 2048; }},
        Variant{"WindowOneTooLong", kGptOss,
                [](ModelCopy& copy) { copy.config["sliding_window"] = 17; }},
        Variant{"WindowOnOddLayers", kGptOss,
                [](ModelCopy& copy) {
                  for (json& type : copy.config["layer_types"])
                    type = type == "full_attention" ? "sliding_attention" : "full_attention";
                }},
        Variant{"NoPlusOne", kGptOss, all("gate_up_proj_bias", subtract_one_from_up)},
        Variant{"NoClamp", kGptOss, [](ModelCopy& copy) { copy.config["swiglu_limit"] = 1e6; }},
        Variant{"GateAndUpInHalves", kGptOss,
                [](ModelCopy& copy) {
                  copy.change_tensors("gate_up_proj_blocks", halves_for_pairs);
                  copy.change_tensors("gate_up_proj_scales", halves_for_pairs);
                  copy.change_tensors("gate_up_proj_bias", halves_for_pairs);
                }},
        Variant{"TruncatedYarn", kGptOss,
                [](ModelCopy& copy) { copy.config["rope_scaling"]["truncate"] = true; }},
        Variant{"NoYarnConcentration", kGptOss,
                [](ModelCopy& copy) { copy.config["rope_scaling"]["mscale"] = 0; }},
        Variant{"NoRouterBias", kGptOss, all("router.bias", set_zeros)},
        Variant{"NoQueryBias", kGptOss, all("q_proj.bias", set_zeros)},
        Variant{"NoOutputBias", kGptOss, all("o_proj.bias", set_zeros)},
        Variant{"NoGateUpBias", kGptOss, all("gate_up_proj_bias", set_zeros)},
        Variant{"NoDownBias", kGptOss, all("down_proj_bias", set_zeros)},
        Variant{"NibblesSwapped", kGptOss, all("_blocks", swap_nibbles)},
        Variant{"ScalesOffByOne", kGptOss, all("_scales", double_scales)}),
    [](const auto& test) { return test.param.name; });

// The counterpart: copying alone changes nothing.
class FaithfulCopy : public testing::TestWithParam<const char*> {};

TEST_P(FaithfulCopy, IsTheGolden) {
  ModelCopy copy(golden_directory(GetParam()));

  const Excess excess = excess_of(GetParam(), copy);

  EXPECT_LE(excess.worst(), 1);
  EXPECT_EQ(excess.misrouted, 0);
}

INSTANTIATE_TEST_SUITE_P(Of, FaithfulCopy, testing::Values(kV3, kFp8, kV2, kGptOss),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace troupe::system_tests
