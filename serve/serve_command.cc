#include "serve/serve_command.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "base/error.h"
#include "launcher/command_errors.h"
#include "launcher/launch_options.h"
#include "serve/api.h"
#include "serve/engine.h"
#include "serve/http_server.h"
#include "serve/served_model.h"

namespace troupe::serve {

namespace {

using std::chrono::milliseconds;

struct ServeArguments {
  launcher::ConfigArguments config;
  std::filesystem::path chat_template;
  std::string host = "127.0.0.1", model_name, api_key;
  uint16_t port = 8000;
  int max_queued_requests = 1024;
  HttpLimits limits;
};

// What has been answered shall arrive: a moment for the clients to take it.
void wait_for_clients(const HttpServer& server, milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (server.open_answers() > 0 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(5));
}

std::string name_of(const ServeArguments& arguments, const launcher::Config& config) {
  if (!arguments.model_name.empty()) return arguments.model_name;
  if (!config.model.model_name.empty()) return config.model.model_name;
  return std::filesystem::absolute(config.model.model_path).lexically_normal().filename();
}

bool is_loopback(const std::string& host) {
  return host.starts_with("127.") || host == "localhost" || host == "::1";
}

void run_serve(const ServeArguments& arguments) {
  const launcher::Config config = launcher::read_config(arguments.config);
  for (const std::string& note : config.notes) spdlog::info("{}", note);
  launcher::require_runnable(config);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  const ServedModel served(config, model, name_of(arguments, config), arguments.chat_template);
  if (!served.chat) spdlog::info("no /v1/chat/completions: {}", served.no_chat);

  Engine engine(config, model, arguments.max_queued_requests);
  const Api api(served, engine, arguments.api_key);
  HttpServer server(arguments.host, arguments.port, arguments.limits);
  if (!is_loopback(arguments.host) && arguments.api_key.empty())
    spdlog::warn("--host {} can be reached from outside, and without --api-key by anybody",
                 arguments.host);
  server.start([&api](HttpRequest request, Wake wake) {
    return api.handle(std::move(request), std::move(wake));
  });
  const bool v6 = arguments.host.find(':') != std::string::npos;
  const std::string url =
      fmt::format("http://{}{}{}:{}", v6 ? "[" : "", arguments.host, v6 ? "]" : "", server.port());
  spdlog::info("listening on {}; the ranks are starting", url);
  try {
    engine.run([&] {
      fmt::print("serving {} on {}\n", served.name, url);
      std::fflush(stdout);
    });
  } catch (...) {
    wait_for_clients(server, milliseconds(1000));
    throw;
  }
  wait_for_clients(server, milliseconds(5000));
  const Metrics::Totals totals = engine.metrics().totals();
  spdlog::info("{} requests, {} tokens generated", totals.requests, totals.generation_tokens);
}

void add_seconds(CLI::App* command, const char* name, milliseconds& time, const char* help) {
  command
      ->add_option_function<double>(
          name,
          [&time](double seconds) { time = milliseconds(static_cast<int64_t>(1000 * seconds)); },
          help)
      ->check(launcher::number_from(0.001, 86400))
      ->default_str(std::to_string(time.count() / 1000));
}

void add_limits(CLI::App* command, ServeArguments& a) {
  command
      ->add_option("--max-queued-requests", a.max_queued_requests,
                   "that may wait beside those that run; more are refused with status 429")
      ->check(launcher::integer_from(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-connections", a.limits.connections, "open at once")
      ->check(launcher::integer_from(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--max-body-bytes", a.limits.body_bytes, "of a request")
      ->check(launcher::integer_from(1, 1 << 30))
      ->capture_default_str();
  add_seconds(command, "--header-timeout", a.limits.header_time,
              "seconds for a request's head to arrive");
  add_seconds(command, "--body-timeout", a.limits.body_time, "seconds for its body");
  add_seconds(command, "--idle-timeout", a.limits.idle_time, "seconds between requests");
  add_seconds(command, "--write-timeout", a.limits.write_time,
              "seconds for a client to take a part of its answer");
}

}  // namespace

void add_serve_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("serve", "answer OpenAI's HTTP interface");
  const auto a = std::make_shared<ServeArguments>();
  launcher::add_config_options(*command, a->config)->required();
  launcher::add_inject_option(*command, a->config);
  launcher::add_trace_option(*command, a->config);
  command->add_option("--host", a->host, "address to listen on")->capture_default_str();
  command->add_option("--port", a->port, "0: a free one, which is printed")
      ->check(launcher::integer_from(0, 65535))
      ->capture_default_str();
  command->add_option("--served-model-name", a->model_name,
                      "what clients call the model; model_config.model_name by default");
  command->add_option("--chat-template", a->chat_template, "this Jinja file, not the checkpoint's");
  command
      ->add_option("--api-key", a->api_key,
                   "clients must send it as Authorization: Bearer KEY (better: TROUPE_API_KEY, "
                   "which no process list shows)")
      ->envname("TROUPE_API_KEY");
  add_limits(command, *a);
  command->callback([a] { run_serve(*a); });
}

}  // namespace troupe::serve
