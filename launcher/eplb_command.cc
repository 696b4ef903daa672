#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/commands.h"
#include "launcher/config.h"
#include "launcher/expert_load.h"
#include "launcher/report.h"
#include "model/expert_balance.h"

namespace troupe::launcher {
namespace {

// How even the ranks' shares of one layer are.
struct Evenness {
  double before, after;
};

model::BalanceShape balance_shape(const EplbArguments& arguments, const model::ModelConfig& model,
                                  const model::ParallelSizes& sizes) {
  const int experts = model.n_routed_experts, ranks = sizes.moe_ep_size();
  if (experts == 0)
    throw_user_error("--config: the model has no routed experts: there is nothing to place");
  if (arguments.redundant < 0 || arguments.redundant > int64_t{experts} * (ranks - 1))
    throw_user_error("--redundant {}: must be from 0 to {}, when each of {} ranks holds all {}",
                     arguments.redundant, int64_t{experts} * (ranks - 1), ranks, experts);
  const int places = experts + arguments.redundant;
  if (places % ranks != 0)
    throw_user_error(
        "--redundant {}: {} experts with it cannot be divided by moe_ep_size {}; use {}",
        arguments.redundant, places, ranks, (places / ranks + 1) * ranks - experts);
  if (arguments.nodes < 1 || ranks % arguments.nodes != 0)
    throw_user_error("--nodes {}: does not divide moe_ep_size {}, the ranks that share the experts",
                     arguments.nodes, ranks);
  if (places % arguments.nodes != 0 || experts % arguments.nodes != 0)
    throw_user_error("--nodes {}: cannot share {} experts evenly", arguments.nodes, experts);
  return {.num_physical = places,
          .num_ranks = ranks,
          .num_groups = model.gate.num_groups,
          .num_nodes = arguments.nodes};
}

std::vector<int32_t> in_order(int num_experts) {
  std::vector<int32_t> experts(num_experts);
  for (int expert = 0; expert < num_experts; ++expert) experts[expert] = expert;
  return experts;
}

Evenness evenness(const std::vector<double>& load, const std::vector<int32_t>& placement,
                  int num_ranks) {
  const auto before = model::rank_loads(load, in_order(static_cast<int>(load.size())), num_ranks);
  return {model::imbalance(before),
          model::imbalance(model::rank_loads(load, placement, num_ranks))};
}

}  // namespace

void eplb_command(const EplbArguments& arguments) {
  Config config = read_config(arguments.config.config, arguments.config.overrides);
  config.parallel.expert_placement = {};  // a new one takes its place
  require_output_path(arguments.output);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const model::BalanceShape shape = balance_shape(arguments, model, config.parallel);
  const auto counts = read_expert_counts(arguments.counts, model.n_routed_experts);

  model::ExpertPlacement placement{.layers = {}, .source = arguments.output.string()};
  fmt::print("{:>5} {:>10} {:>10}   busiest rank over the mean\n", "layer", "before", "after");
  Evenness mean{0, 0};
  for (const int layer : model::moe_layers(model)) {
    const auto found = counts.find(layer);
    const bool counted = found != counts.end();
    const std::vector<double> load =
        counted ? found->second : std::vector<double>(model.n_routed_experts, 1);
    placement.layers[layer] = model::balanced_placement(load, shape);
    const Evenness even = evenness(load, placement.layers[layer], shape.num_ranks);
    mean.before += even.before;
    mean.after += even.after;
    fmt::print("{:>5} {:>10.3f} {:>10.3f}{}\n", layer, even.before, even.after,
               counted ? "" : "   no counts: taken as even");
  }
  for (const auto& [layer, load] : counts)
    if (!placement.layers.contains(layer))
      throw_user_error("{}: layer {} of the model has no routed experts", arguments.counts.string(),
                       layer);
  const auto layers = static_cast<double>(placement.layers.size());
  fmt::print("{:>5} {:>10.3f} {:>10.3f}\n", "mean", mean.before / layers, mean.after / layers);
  model::check_placement(placement, model, shape.num_ranks);
  write_json_file(arguments.output, model::placement_json(placement));
}

}  // namespace troupe::launcher
