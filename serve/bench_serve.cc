// `troupe bench serve`: a workload of requests that arrive over time, for ranks of its own or for a
// server.
#include "serve/bench_serve.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/output_path.h"
#include "launcher/command_errors.h"
#include "launcher/expert_load.h"
#include "launcher/launch_options.h"
#include "launcher/report.h"
#include "launcher/serve_replay.h"
#include "serve/load_client.h"
#include "serve/load_report.h"

namespace troupe::serve {

namespace {

constexpr int kMaxThreads = 1024;

struct BenchServeArguments {
  launcher::ConfigArguments config;
  std::filesystem::path trace, json, svg;  // trace: of arrivals
  launcher::PoissonArrivals poisson;
  std::string url, model, api_key;
  int concurrency = 0;  // 0: as many as come
  std::vector<std::string> goodput;
};

void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.close();
  if (!file) throw_user_error("{}: cannot write", path.string());
}

// Ranks of its own, without HTTP.
void replay_offline(const BenchServeArguments& arguments,
                    const std::vector<launcher::Arrival>& arrivals) {
  if (!arguments.goodput.empty()) throw_user_error("--goodput: counts with --url alone");
  const launcher::Config config = launcher::read_config(arguments.config);
  launcher::require_runnable(config);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  launcher::Session session(
      config, model, launcher::load_of(arrivals), 0,
      {.on_tokens = [](int, std::span<const int32_t>, actors::FinishReason) {}});
  const launcher::Replay result = launcher::replay(session, arrivals, model.vocab_size);
  const std::vector<launcher::RankFigures> ranks = session.shut_down();

  fmt::print("{}", replay_table(result));
  if (!arguments.json.empty()) {
    nlohmann::json report = replay_json(result);
    report["metrics"]["expert_load"] =
        launcher::expert_load_json(launcher::expert_load(ranks, model, config.parallel));
    launcher::write_json_file(arguments.json, report);
  }
  if (!arguments.svg.empty()) write_text(arguments.svg, replay_svg(result));
}

void load_server(const BenchServeArguments& arguments,
                 const std::vector<launcher::Arrival>& arrivals) {
  if (!arguments.svg.empty()) throw_user_error("--svg: draws ranks of its own; not with --url");
  const ServiceLevel level = parse_goodput(arguments.goodput);
  LoadTarget target = parse_url(arguments.url);
  target.model = arguments.model;
  target.api_key = arguments.api_key;
  const int concurrency = arguments.concurrency > 0
                              ? arguments.concurrency
                              : static_cast<int>(std::min<size_t>(arrivals.size(), kMaxThreads));
  const double rate = arguments.trace.empty() ? arguments.poisson.rate : 0;
  const auto figures = load_json(run_load(target, arrivals, concurrency), rate, concurrency, level);

  fmt::print("{}", load_table(figures));
  if (!arguments.json.empty()) launcher::write_json_file(arguments.json, figures);
}

void run_bench_serve(const BenchServeArguments& arguments) {
  if (arguments.url.empty() == arguments.config.config.empty())
    throw_user_error("bench serve: give either --config FILE or --url http://HOST:PORT");
  if (!arguments.url.empty() && !arguments.config.inject.empty())
    throw_user_error("--inject: is for ranks of its own; give it to the server of --url");
  for (const auto& path : {arguments.json, arguments.svg})
    if (!path.empty()) require_output_path(path);
  const auto arrivals = arguments.trace.empty() ? poisson_arrivals(arguments.poisson)
                                                : launcher::read_arrivals(arguments.trace);
  arguments.url.empty() ? replay_offline(arguments, arrivals) : load_server(arguments, arrivals);
}

void add_load(CLI::App* command, launcher::PoissonArrivals& poisson) {
  command->add_option("--requests", poisson.requests, "without --trace: how many")
      ->default_val(64)
      ->check(launcher::integer_from(1, 10'000'000));
  command->add_option("--rate", poisson.rate, "requests per second; 0: all at once")
      ->default_val(8)
      ->check(launcher::number_from(0, 1e6));
  command->add_option("--input", poisson.input_tokens, "tokens of a prompt, in the mean")
      ->default_val(64)
      ->check(launcher::integer_from(1, 1 << 24));
  command->add_option("--output", poisson.output_tokens, "tokens of an answer, in the mean")
      ->default_val(32)
      ->check(launcher::integer_from(1, 1 << 24));
  command->add_option("--seed", poisson.seed, "of arrivals and lengths")
      ->default_val(0)
      ->check(launcher::integer_from(0, INT64_MAX));
}

void add_server(CLI::App* command, BenchServeArguments& arguments) {
  command->add_option("--url", arguments.url, "a server to ask, http://HOST:PORT");
  command->add_option("--model", arguments.model, "its name there; the first by default");
  command->add_option("--api-key", arguments.api_key, "of the server")->envname("TROUPE_API_KEY");
  command->add_option("--concurrency", arguments.concurrency, "requests at a time, at most")
      ->check(launcher::integer_from(1, kMaxThreads));
  command
      ->add_option("--goodput", arguments.goodput,
                   "ttft:MS, tpot:MS, e2el:MS: what a request must keep to count as good")
      ->take_all();
}

}  // namespace

void add_bench_serve(CLI::App& bench) {
  CLI::App* command = bench.add_subcommand(
      "serve", "requests that arrive over time, for ranks of its own or for a server");
  const auto arguments = std::make_shared<BenchServeArguments>();
  launcher::add_config_options(*command, arguments->config);
  launcher::add_inject_option(*command, arguments->config);
  add_server(command, *arguments);
  command->add_option("--trace", arguments->trace,
                      "file of lines arrival_s,input_tokens,output_tokens");
  add_load(command, arguments->poisson);
  command->add_option("--json", arguments->json, "write the figures to this file");
  command->add_option("--svg", arguments->svg, "draw the load over time to this file");
  command->callback([arguments] { run_bench_serve(*arguments); });
}

}  // namespace troupe::serve
