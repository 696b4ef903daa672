#include "tests/system/golden.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>

namespace troupe::system_tests {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Of one position's logits.
struct RowError {
  double max_abs = 0;
  double relative_l2 = 0;
};

// A NaN is the largest error, not one that no comparison sees.
double or_infinity(double error) { return std::isnan(error) ? kInfinity : error; }

RowError row_error(std::span<const float> row, std::span<const float> expected) {
  double max_abs = 0, difference = 0, norm = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double d = double{row[i]} - expected[i];
    max_abs = std::max(max_abs, or_infinity(std::abs(d)));
    difference += d * d;
    norm += double{expected[i]} * expected[i];
  }
  return {max_abs, or_infinity(std::sqrt(difference / norm))};
}

std::vector<RowError> row_errors(const model::Tensor& found, const model::Tensor& expected) {
  EXPECT_EQ(found.shape, expected.shape);
  const std::vector<float> rows = values<float>(found), expected_rows = values<float>(expected);
  if (found.shape != expected.shape) return {{kInfinity, kInfinity}};
  const auto cols = static_cast<size_t>(expected.shape.back());
  std::vector<RowError> errors;
  for (size_t begin = 0; begin < rows.size(); begin += cols)
    errors.push_back(row_error(std::span(rows).subspan(begin, cols),
                               std::span(expected_rows).subspan(begin, cols)));
  return errors;
}

double float32_logits_excess(const Golden& golden, const std::vector<RowError>& errors) {
  double worst = 0;
  for (const RowError& error : errors)
    worst = std::max({worst, error.max_abs / golden.tolerance("fp32", "logits_max_abs"),
                      error.relative_l2 / golden.tolerance("fp32", "logits_rel_l2")});
  return worst;
}

// `kind` is "logits" or "mtp_logits".
double bfloat16_logits_excess(const Golden& golden, const std::vector<RowError>& errors,
                              int clean_prefix, const std::string& kind) {
  double worst = 0;
  std::vector<double> all;
  for (const RowError& error : errors) {
    all.push_back(error.relative_l2);
    if (static_cast<int>(all.size()) <= clean_prefix)
      worst = std::max(
          worst, error.relative_l2 / golden.tolerance("bf16", "clean_prefix_" + kind + "_rel_l2"));
  }
  std::ranges::nth_element(all, all.begin() + all.size() / 2);
  return std::max(worst, all[all.size() / 2] /
                             golden.tolerance("bf16", "all_positions_" + kind + "_rel_l2_median"));
}

// Adds one layer's routing of one prompt.
void compare_routing(const Golden& golden, const model::Tensor& ids, const model::Tensor& weights,
                     const std::string& prompt, int layer, Excess& excess) {
  const model::Tensor& expected = golden.tensor(fmt::format("{}.router_ids.L{}", prompt, layer));
  ASSERT_EQ(ids.shape, expected.shape);
  ASSERT_EQ(weights.shape, expected.shape);
  const auto topk = static_cast<size_t>(ids.shape.back());
  const auto chosen = values<int32_t>(ids), expected_ids = values<int32_t>(expected);
  const auto found = values<float>(weights);
  const auto expected_weights =
      values<float>(golden.tensor(fmt::format("{}.router_weights.L{}", prompt, layer)));
  for (size_t token = 0; token < chosen.size(); token += topk) {
    std::map<int32_t, float> by_expert, expected_by_expert;
    for (size_t k = token; k < token + topk; ++k) {
      by_expert[chosen[k]] = found[k];
      expected_by_expert[expected_ids[k]] = expected_weights[k];
    }
    const auto same_expert = [](auto& a, auto& b) { return a.first == b.first; };
    if (!std::ranges::equal(by_expert, expected_by_expert, same_expert)) {
      ++excess.misrouted;
      continue;
    }
    for (const auto& [expert, weight] : expected_by_expert) {
      const double error = std::abs(by_expert[expert] - weight) / weight;
      excess.router_weights = std::max(
          excess.router_weights, or_infinity(error) / golden.tolerance("fp32", "logits_rel_l2"));
    }
  }
}

std::vector<RowError> logits_errors(const Golden& golden, const Dump& dump, size_t prompt,
                                    const std::string& kind, const std::string& reference) {
  return row_errors(dump.tensor(fmt::format("{}.{}", kind, prompt)),
                    golden.tensor(fmt::format("{}.{}", golden.prompts()[prompt].id, reference)));
}

}  // namespace

Golden::Golden(const std::string& name)
    : json_(json::parse(model::read_file(golden_directory(name) / "golden.json"))),
      tensors_(golden_directory(name) / "golden.safetensors"),
      moe_layers_(json_.at("moe_layers")),
      has_mtp_(json_.contains("mtp")) {
  if (has_mtp_) moe_layers_.push_back(json_.at("mtp").at("layer"));
  for (const json& p : json_.at("prompts"))
    prompts_.push_back({.id = p.at("id"),
                        .tokens = p.at("tokens"),
                        .greedy = p.at("greedy").at("tokens"),
                        .clean_prefix = p.at("bf16_clean_prefix"),
                        .mtp_clean_prefix = p.value("bf16_clean_prefix_mtp", 0),
                        .comparable_steps = p.at("bf16_comparable_greedy_steps")});
}

std::vector<Ids> Golden::prompt_tokens() const {
  std::vector<Ids> all;
  for (const GoldenPrompt& prompt : prompts_) all.push_back(prompt.tokens);
  return all;
}

const model::Tensor& Golden::tensor(const std::string& name) const {
  const auto found = tensors_.tensors().find(name);
  if (found == tensors_.tensors().end()) throw std::runtime_error("the golden has no " + name);
  return found->second;
}

double Golden::tolerance(const std::string& dtype, const std::string& key) const {
  return json_.at("tolerance").at(dtype).at(key);
}

double Excess::worst() const { return std::max({logits, mtp_logits, router_weights}); }

Excess float32_excess(const Golden& golden, const Dump& dump, const std::string& reference) {
  Excess excess;
  for (size_t i = 0; i < golden.prompts().size(); ++i) {
    const auto logits = logits_errors(golden, dump, i, "logits", reference);
    excess.logits = std::max(excess.logits, float32_logits_excess(golden, logits));
    if (golden.has_mtp()) {
      const auto mtp = logits_errors(golden, dump, i, "mtp_logits", "mtp_logits");
      excess.mtp_logits = std::max(excess.mtp_logits, float32_logits_excess(golden, mtp));
    }
    for (const int layer : golden.moe_layers())
      compare_routing(golden, dump.tensor(fmt::format("router_ids.{}.{}", i, layer)),
                      dump.tensor(fmt::format("router_weights.{}.{}", i, layer)),
                      golden.prompts()[i].id, layer, excess);
  }
  return excess;
}

Excess bfloat16_excess(const Golden& golden, const Dump& dump, const std::string& reference) {
  Excess excess;
  for (size_t i = 0; i < golden.prompts().size(); ++i) {
    const GoldenPrompt& prompt = golden.prompts()[i];
    const auto logits = logits_errors(golden, dump, i, "logits", reference);
    excess.logits = std::max(excess.logits,
                             bfloat16_logits_excess(golden, logits, prompt.clean_prefix, "logits"));
    if (!golden.has_mtp()) continue;
    const auto mtp = logits_errors(golden, dump, i, "mtp_logits", "mtp_logits");
    excess.mtp_logits =
        std::max(excess.mtp_logits,
                 bfloat16_logits_excess(golden, mtp, prompt.mtp_clean_prefix, "mtp_logits"));
  }
  return excess;
}

}  // namespace troupe::system_tests
