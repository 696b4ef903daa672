#include <cstdlib>

#include "base/error.h"
#include "serve/api_error.h"
#include "serve/generation_request.h"
#include "serve/http_server.h"
#include "tests/fuzz/target_functions.h"
#include "tests/serve/http_client.h"

namespace troupe::fuzz {
namespace {

// Of the smallest checkpoint, with a template that knows tools.
const serve::ServedModel& served_model() {
  static const std::filesystem::path source = TROUPE_SOURCE_DIR;
  static const launcher::Config config = [] {
    launcher::Config with_path;
    with_path.model.model_path = source / "models/tiny-moe";
    return with_path;
  }();
  static const model::ModelConfig model = model::read_model_config(config.model.model_path);
  static const serve::ServedModel served(config, model, "m",
                                         source / "tests/model/chat_templates/deepseek_v3_1.jinja");
  return served;
}

}  // namespace

// The same body to all endpoints.
void request_json(Bytes bytes) {
  bool accepted = false;
  std::string why;
  for (const auto endpoint :
       {serve::Endpoint::kChat, serve::Endpoint::kCompletions, serve::Endpoint::kGenerate}) {
    try {
      serve::parse_generation_request(endpoint, std::string(text_of(bytes)), served_model(), 4096);
      accepted = true;
    } catch (const serve::ApiError& error) {
      why = error.what();
    }
  }
  if (!accepted) throw UserError(why);
}

// A client's bytes on a connection, after which it says no more. The server answers what it
// understands, and in any case closes: HttpClient waits for that no longer than 30 s.
void http(Bytes bytes) {
  static serve::HttpServer* const server = [] {
    auto* started = new serve::HttpServer("127.0.0.1", 0, {.body_bytes = 1 << 16});
    started->start([](serve::HttpRequest request, serve::Wake) {
      return serve::whole_answer({}, request.method + request.path + request.body);
    });
    return started;
  }();
  serve::HttpClient client(server->port());
  client.send(std::string(text_of(bytes)));
  client.end_sending();
  const std::string answers = client.receive_rest();
  if (answers.find("HTTP/1.1 200 ") == std::string::npos) throw UserError("no request");
}

}  // namespace troupe::fuzz
