#include "tests/system/layout_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/system/golden.h"

namespace troupe::system_tests {
namespace {

constexpr int kNewTokens = 12;

LayoutCase make_case(const std::filesystem::path& model, const std::string& dtype,
                     std::vector<Ids> prompts) {
  const json model_config = json::parse(model::read_file(model / "config.json"));
  LayoutCase result{.config = configuration(model, 1, dtype),
                    .prompts = std::move(prompts),
                    .has_mtp = model_config.value("num_nextn_predict_layers", 0) > 0};
  result.config["scheduler_config"]["max_new_tokens"] = kNewTokens;
  return result;
}

}  // namespace

LayoutCase tiny_moe_case(const std::string& dtype, const std::string& weight_format) {
  const json golden = json::parse(model::read_file(tiny_moe() / "golden.json"));
  std::vector<Ids> prompts{{0}, golden["cases"][3]["prompt_ids"]};
  for (const int index : {0, 4, 7}) {
    Ids& story = prompts.emplace_back(golden["cases"][index]["prompt_ids"]);
    const Ids continuation = golden["cases"][index]["continuation_ids"];
    story.insert(story.end(), continuation.begin(), continuation.end());
  }
  LayoutCase result = make_case(tiny_moe(), dtype, std::move(prompts));
  result.config["runtime_config"]["weight_format"] = weight_format;
  return result;
}

// The shorter prompts: 1, 7 and 33 tokens.
LayoutCase golden_case(const std::string& golden, const std::string& dtype) {
  std::vector<Ids> prompts = Golden(golden).prompt_tokens();
  std::erase_if(prompts, [](const Ids& ids) { return ids.size() > 40; });
  return make_case(golden_directory(golden), dtype, std::move(prompts));
}

LayoutCase random_weights_case(const std::filesystem::path& directory, const std::string& dtype) {
  Ids ids;
  for (int i = 0; i < 37; ++i) ids.push_back(i * 8);
  LayoutCase result = make_case(directory, dtype, {ids, {5}, {331, 2, 7}});
  result.config["model_config"]["with_ckpt"] = false;
  return result;
}

OneRank::OneRank(LayoutCase layout_case)
    : case_(std::move(layout_case)), dump_(case_.config, case_.prompts, case_.dump_items()) {}

std::vector<std::string> OneRank::differing_tensors(const Layout& layout) const {
  const Dump found(with_layout(case_.config, layout), case_.prompts, case_.dump_items());
  std::vector<std::string> names;
  for (const auto& [name, tensor] : dump_.tensors())
    if (!same_bytes(tensor, found.tensor(name))) names.push_back(name);
  return names;
}

std::vector<Ids> OneRank::tokens(const json& config, int next_n, bool sampled) const {
  json changed = config;
  changed["model_config"]["next_n"] = case_.has_mtp ? next_n : 0;
  if (sampled) changed["data_config"] = {{"temperature", 0.9}, {"top_k", 20}, {"seed", 7}};
  return output_ids(generate(changed, case_.prompts));
}

bool OneRank::same_tokens(const Layout& layout, int next_n) {
  const bool sampled = next_n % 2 == 1;
  if (!tokens_.contains(sampled)) tokens_[sampled] = tokens(case_.config, 0, sampled);
  json config = with_layout(case_.config, layout);
  if (next_n == 1 || next_n == 2) config["model_config"]["exe_mode"] = "graph";
  if (next_n == 2) {
    config["model_config"]["custom_params"]["enable_superkernel"] = true;
    config["runtime_config"]["threads_per_rank"] = 2;
  }
  return tokens(config, next_n, sampled) == tokens_[sampled];
}

double OneRank::logits_difference(const json& config) const {
  const Dump dump(config, case_.prompts, "logits");
  double worst = 0;
  for (size_t i = 0; i < case_.prompts.size(); ++i) {
    const std::string name = fmt::format("logits.{}", i);
    const auto found = values<float>(dump.tensor(name)),
               expected = values<float>(dump_.tensor(name));
    const size_t vocab = expected.size() / case_.prompts[i].size();
    for (size_t begin = 0; begin < expected.size(); begin += vocab) {
      double difference = 0, norm = 0;
      for (size_t j = begin; j < begin + vocab; ++j) {
        difference += (double{found[j]} - expected[j]) * (double{found[j]} - expected[j]);
        norm += double{expected[j]} * expected[j];
      }
      const double relative = std::sqrt(difference / norm);
      worst = std::max(worst,
                       std::isnan(relative) ? std::numeric_limits<double>::infinity() : relative);
    }
  }
  return worst;
}

}  // namespace troupe::system_tests
