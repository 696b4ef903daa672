#include "serve/serve_command.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <thread>

#include "base/error.h"
#include "launcher/command_errors.h"
#include "launcher/config.h"
#include "launcher/launch_options.h"
#include "launcher/supervisor.h"
#include "serve/api.h"
#include "serve/engine.h"
#include "serve/http_server.h"
#include "serve/instance.h"
#include "serve/instance_processes.h"
#include "serve/router.h"
#include "serve/served_model.h"

namespace troupe::serve {

namespace {

using std::chrono::milliseconds;

constexpr const char* kDefaultRouter = "main";

struct ServeArguments {
  launcher::ConfigArguments config;
  std::filesystem::path chat_template;
  std::string host = "127.0.0.1", model_name, api_key;
  uint16_t port = 8000;
  int max_queued_requests = 1024;
  std::string pd_role, router, kv_handoff = "map";
  int launcher_pid = 0;
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

// The two files of a separated deployment: "P.yaml,D.yaml", or a directory with prefill.yaml and
// decode.yaml.
struct PoolConfigs {
  std::filesystem::path prefill, decode;
};

std::optional<PoolConfigs> pool_configs(const std::string& config) {
  if (const size_t comma = config.find(','); comma != std::string::npos)
    return PoolConfigs{config.substr(0, comma), config.substr(comma + 1)};
  const std::filesystem::path path(config);
  if (std::filesystem::is_directory(path))
    return PoolConfigs{path / "prefill.yaml", path / "decode.yaml"};
  return std::nullopt;
}

std::string role_of(const ServeArguments& arguments) {
  if (!arguments.pd_role.empty()) return arguments.pd_role;
  return pool_configs(arguments.config.config.string()) ? "both" : "mixed";
}

std::filesystem::path config_of(const ServeArguments& arguments, const std::string& role) {
  const auto pools = pool_configs(arguments.config.config.string());
  if (!pools) {
    if (role == "both")
      throw_user_error(
          "--config {}: --pd-role both needs two files, PREFILL.yaml,DECODE.yaml, or a directory "
          "with prefill.yaml and decode.yaml",
          arguments.config.config.string());
    return arguments.config.config;
  }
  if (role == "mixed")
    throw_user_error("--config {}: --pd-role mixed needs one file",
                     arguments.config.config.string());
  return role == "prefill" ? pools->prefill : pools->decode;
}

launcher::Config runnable_config(const ServeArguments& arguments, const std::string& role) {
  launcher::ConfigArguments one = arguments.config;
  one.config = config_of(arguments, role);
  const launcher::Config config = launcher::read_config(one);
  for (const std::string& note : config.notes) spdlog::info("{}", note);
  launcher::require_runnable(config);
  return config;
}

// What answers, and is run until it is told to end.
using RunBackend = std::function<void(const std::function<void()>& on_ready)>;

// The endpoint before `backend`.
void serve_http(const ServeArguments& arguments, const launcher::Config& config,
                const model::ModelConfig& model, Backend& backend, const RunBackend& run) {
  const ServedModel served(config, model, name_of(arguments, config), arguments.chat_template);
  if (!served.chat) spdlog::info("no /v1/chat/completions: {}", served.no_chat);
  const Api api(served, backend, arguments.api_key);
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
    run([&] {
      fmt::print("serving {} on {}\n", served.name, url);
      std::fflush(stdout);
    });
  } catch (...) {
    wait_for_clients(server, milliseconds(1000));
    throw;
  }
  wait_for_clients(server, milliseconds(5000));
  const Metrics::Totals totals = backend.metrics().totals();
  spdlog::info("{} requests, {} tokens generated", totals.requests, totals.generation_tokens);
}

void serve_mixed(const ServeArguments& arguments) {
  const launcher::Config config = runnable_config(arguments, "mixed");
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  Engine engine(config, model, arguments.max_queued_requests);
  serve_http(arguments, config, model, engine, [&](const auto& on_ready) { engine.run(on_ready); });
}

void serve_instance(const ServeArguments& arguments, const std::string& role) {
  if (arguments.launcher_pid > 0)
    launcher::die_with_parent(arguments.launcher_pid, role + " instance");
  const launcher::Config config = runnable_config(arguments, role);
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  Instance(config, model,
           {.role = role == "prefill" ? pd::Role::Prefill : pd::Role::Decode,
            .router = arguments.router.empty() ? kDefaultRouter : arguments.router,
            .pull = arguments.kv_handoff == "pull",
            .child = arguments.launcher_pid > 0})
      .run();
}

InstanceProcesses::Command child_command(const ServeArguments& arguments, const std::string& role,
                                         const std::string& router) {
  std::vector<std::string> words;
  for (const std::string& word :
       {std::string("serve"), std::string("--pd-role"), role, std::string("--config"),
        config_of(arguments, role).string(), std::string("--router"), router,
        std::string("--kv-handoff"), arguments.kv_handoff, std::string("--launcher-pid"),
        std::to_string(::getpid())})
    words.push_back(word);
  for (const std::string& one : arguments.config.overrides) {
    words.emplace_back("--set");
    words.push_back(one);
  }
  return {role, std::move(words)};
}

// The endpoint before instances that join: with `both` one of each is started here.
void serve_router(const ServeArguments& arguments, bool both) {
  if (!arguments.config.inject.empty() || !arguments.config.trace.empty())
    throw_user_error(
        "--inject, --trace: a router has no ranks; give them to an instance (--pd-role prefill or "
        "decode)");
  const launcher::Config config = runnable_config(arguments, both ? "both" : "router");
  const model::ModelConfig model = model::read_model_config(config.model.model_path);
  std::string name = arguments.router;
  if (name.empty()) name = both ? std::to_string(::getpid()) : kDefaultRouter;
  Router router(name, arguments.max_queued_requests);
  serve_http(arguments, config, model, router, [&](const auto& on_ready) {
    std::optional<InstanceProcesses> children;
    if (both)
      children.emplace(std::vector{child_command(arguments, "prefill", name),
                                   child_command(arguments, "decode", name)});
    router.run({.on_ready = on_ready, .on_tick = [&] {
                  if (children) children->look();
                }});
    if (children) children->stop();
  });
}

void run_serve(const ServeArguments& arguments) {
  const std::string role = role_of(arguments);
  if (role == "mixed") return serve_mixed(arguments);
  if (role == "prefill" || role == "decode") return serve_instance(arguments, role);
  serve_router(arguments, role == "both");
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

void add_separation(CLI::App* command, ServeArguments& a) {
  command
      ->add_option("--pd-role", a.pd_role,
                   "mixed: prefill and decode in the same ranks; prefill, decode: an instance "
                   "that joins a router; router: the endpoint before them; both: the endpoint and "
                   "one instance of each")
      ->check(CLI::IsMember({"mixed", "prefill", "decode", "router", "both"}))
      ->default_str("both with two files, else mixed");
  command->add_option("--router", a.router, "name under which a router and its instances meet")
      ->check(
          [](const std::string& name) { return name.size() <= 64 ? "" : "at most 64 characters"; })
      ->default_str("main; with --pd-role both the process id");
  command
      ->add_option("--kv-handoff", a.kv_handoff,
                   "how decode reads a prompt's KV blocks: map, where they lie, or pull, copied in "
                   "the background")
      ->check(CLI::IsMember({"map", "pull"}))
      ->capture_default_str();
  command->add_option("--launcher-pid", a.launcher_pid)->group("");  // of a router's child
}

}  // namespace

void add_serve_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("serve", "answer OpenAI's HTTP interface");
  const auto a = std::make_shared<ServeArguments>();
  launcher::add_config_options(*command, a->config)
      ->required()
      ->description(
          "YAML file of the run; of separated pools PREFILL.yaml,DECODE.yaml, or a directory with "
          "prefill.yaml and decode.yaml");
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
  add_separation(command, *a);
  command->callback([a] { run_serve(*a); });
}

}  // namespace troupe::serve
