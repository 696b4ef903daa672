// `troupe bench serve`: a workload of requests that arrive over time.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/bench_command.h"
#include "launcher/expert_load.h"
#include "launcher/report.h"
#include "launcher/serve_replay.h"

namespace troupe::launcher {

namespace {

struct ServeArguments {
  std::filesystem::path config;
  std::vector<std::string> overrides;
  std::filesystem::path trace, json, svg;
  PoissonArrivals poisson;
};

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) throw_user_error("{}: cannot write", path.string());
}

void run_serve(const ServeArguments& arguments) {
  const Config config = read_config(arguments.config, arguments.overrides);
  require_runnable(config);
  for (const auto& path : {arguments.json, arguments.svg})
    if (!path.empty()) require_output_path(path);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const std::vector<Arrival> arrivals = arguments.trace.empty()
                                            ? poisson_arrivals(arguments.poisson)
                                            : read_arrivals(arguments.trace);
  Session session(config, model, load_of(arrivals), 0,
                  {.on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {}});
  const Replay result = replay(session, arrivals, model.vocab_size);
  const std::vector<RankFigures> ranks = session.shut_down();

  fmt::print("{}", replay_table(result));
  if (!arguments.json.empty()) {
    nlohmann::json report = replay_json(result);
    report["metrics"]["expert_load"] = expert_load_json(expert_load(ranks, model, config.parallel));
    write_json_file(arguments.json, report);
  }
  if (!arguments.svg.empty()) write_text(arguments.svg, replay_svg(result));
}

}  // namespace

void add_bench_serve(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand("serve", "requests that arrive over time");
  const auto arguments = std::make_shared<ServeArguments>();
  command->add_option("--config", arguments->config, "YAML file")->required();
  command->add_option("--set", arguments->overrides, "section.key=value; may repeat")
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--trace", arguments->trace,
                      "file of lines arrival_s,input_tokens,output_tokens");
  PoissonArrivals& poisson = arguments->poisson;
  command->add_option("--requests", poisson.requests, "without --trace: how many")
      ->default_val(64)
      ->check(CLI::PositiveNumber);
  command->add_option("--rate", poisson.rate, "requests per second; 0: all at once")
      ->default_val(8)
      ->check(CLI::NonNegativeNumber);
  command->add_option("--input", poisson.input_tokens, "tokens of a prompt, in the mean")
      ->default_val(64)
      ->check(CLI::PositiveNumber);
  command->add_option("--output", poisson.output_tokens, "tokens of an answer, in the mean")
      ->default_val(32)
      ->check(CLI::PositiveNumber);
  command->add_option("--seed", poisson.seed, "of arrivals and lengths")->default_val(0);
  command->add_option("--json", arguments->json, "write the figures to this file");
  command->add_option("--svg", arguments->svg, "draw the load over time to this file");
  command->callback([arguments] { run_serve(*arguments); });
}

}  // namespace troupe::launcher
