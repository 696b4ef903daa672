// `troupe serve` as clients meet it: the tokens of `troupe run`, OpenAI's forms and errors, and an
// end that loses nothing.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>

#include "tests/serve/http_client.h"
#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

using serve::ClientResponse;
using serve::HttpClient;

json tiny_configuration(int world_size) {
  json config = configuration(tiny_moe(), world_size, "bfloat16");
  config["model_config"]["next_n"] = 1;
  config["runtime_config"]["comm_buffer_mb"] = 2;
  return config;
}

class Server {
 public:
  explicit Server(const json& config, const std::vector<std::string>& options = {},
                  const TroupeProcess::Environment& environment = {})
      : process_(arguments(config, options), environment) {
    process_.wait_until("it serves", [&] { return process_.out_so_far().ends_with("\n"); });
    const std::string line = process_.out_so_far();
    port_ = std::stoi(line.substr(line.rfind(':') + 1));
  }

  int port() const { return port_; }
  TroupeProcess& process() { return process_; }
  ClientResponse get(const std::string& path) const { return serve::get(port_, path); }
  ClientResponse post(const std::string& path, const json& body) const {
    return serve::post(port_, path, body);
  }
  json status() const { return get("/status").json(); }
  void wait_until_idle() const {
    wait_until("no request runs", [&] {
      const json now = status();
      return now["running"] == 0 && now["waiting"] == 0 && now["kv_blocks_in_use"] == 0;
    });
  }
  // Sends a request whose answer is long, and waits for its first token.
  HttpClient start_stream(int max_tokens = 1900) const {
    HttpClient client(port_);
    client.send(serve::post_text("/v1/completions", json{{"prompt", "Once upon a time"},
                                                         {"max_tokens", max_tokens},
                                                         {"ignore_eos", true},
                                                         {"stream", true}}
                                                        .dump()));
    client.receive_until("\"text\":");
    return client;
  }

 private:
  std::vector<std::string> arguments(const json& config, const std::vector<std::string>& options) {
    std::vector<std::string> words = command_line("serve", config, {}, directory_);
    words.insert(words.end(), {"--port", "0", "--served-model-name", "tiny"});
    words.insert(words.end(), options.begin(), options.end());
    return words;
  }

  model::TemporaryDirectory directory_;
  TroupeProcess process_;
  int port_ = 0;
};

// One server for the tests that leave it as it was.
class Serve : public testing::Test {
 protected:
  static void SetUpTestSuite() { shared_ = std::make_unique<Server>(tiny_configuration(2)); }
  static void TearDownTestSuite() { shared_.reset(); }
  static Server& server() { return *shared_; }

  static void expect_error(const ClientResponse& response, int status, const json& param,
                           const json& code) {
    EXPECT_EQ(response.status, status) << response.body;
    const json error = response.json().at("error");
    EXPECT_EQ(error.at("param"), param) << error;
    EXPECT_EQ(error.at("code"), code) << error;
    EXPECT_TRUE(error.at("message").is_string() && error.at("type").is_string());
  }

 private:
  static std::unique_ptr<Server> shared_;
};
std::unique_ptr<Server> Serve::shared_;

const std::vector<Ids> kPrompts = {{0, 427, 439, 261, 400}, {0, 12, 77}, {0, 285, 261, 394, 14}};

TEST_F(Serve, GreedyTokensAreThoseOfARunWhateverRunsBeside) {
  const std::vector<Ids> expected = output_ids(generate(tiny_configuration(1), kPrompts));
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int round = 0; round < 2; ++round)
    for (const Ids& prompt : kPrompts) {
      clients.push_back(std::make_unique<HttpClient>(server().port()));
      clients.back()->send(serve::post_text(
          "/generate",
          json{{"prompt", prompt}, {"sampling_params", {{"max_tokens", 24}, {"ignore_eos", true}}}}
              .dump()));
    }

  for (size_t i = 0; i < clients.size(); ++i)
    EXPECT_EQ(clients[i]->receive().json()["result"]["output_ids"], expected[i % 3]);
}

TEST_F(Serve, SeededChoicesAndStopStringsAreThoseOfARun) {
  model::TemporaryDirectory directory;
  json config = tiny_configuration(1);
  config["data_config"] = {{"temperature", 0.9}, {"top_p", 0.95}, {"seed", 7}};
  auto words = command_line("run", config, {}, directory);
  const std::string report = directory.path() / "report.json";
  words.insert(words.end(),
               {"--prompt", "One day", "--n", "3", "--stop", " the", "--json", report});
  EXPECT_EQ(run_troupe(words).status, 0);
  const json outputs = json::parse(model::read_file(report))["outputs"];

  const json answer = server()
                          .post("/v1/completions", {{"prompt", "One day"},
                                                    {"n", 3},
                                                    {"stop", " the"},
                                                    {"temperature", 0.9},
                                                    {"top_p", 0.95},
                                                    {"seed", 7},
                                                    {"max_tokens", 24}})
                          .json();
  int64_t tokens = 0;
  for (int i = 0; i < 3; ++i) {
    const json& choice = answer["choices"][i];
    EXPECT_EQ(choice["index"], i);
    EXPECT_EQ(choice["text"], outputs[i]["text"]);
    EXPECT_EQ(choice["finish_reason"], outputs[i]["finish_reason"]);
    EXPECT_EQ(choice["text"].get<std::string>().find(" the"), std::string::npos);
    tokens += std::ssize(outputs[i]["output_ids"]);
  }
  EXPECT_NE(outputs[0]["text"], outputs[1]["text"]);
  EXPECT_EQ(answer["usage"]["completion_tokens"], tokens);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], std::ssize(outputs[0]["prompt_ids"]));
}

TEST_F(Serve, AStreamedChatHasTheTextOfAWholeOne) {
  json request = {
      {"model", "tiny"},    {"messages", {{{"role", "user"}, {"content", "Tell me a story."}}}},
      {"max_tokens", 30},   {"n", 2},
      {"temperature", 0.8}, {"seed", 3}};
  const json whole = server().post("/v1/chat/completions", request).json();
  request["stream"] = true;
  request["stream_options"] = {{"include_usage", true}};
  const ClientResponse response = server().post("/v1/chat/completions", request);
  EXPECT_EQ(response.fields.at("content-type"), "text/event-stream; charset=utf-8");
  std::vector<std::string> events = response.events();
  ASSERT_GT(events.size(), 10);
  EXPECT_EQ(events.back(), "[DONE]");
  events.pop_back();
  const json usage = json::parse(events.back());
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
  events.pop_back();

  std::string texts[2], reasons[2];
  for (const std::string& event : events) {
    const json data = json::parse(event);
    EXPECT_EQ(data["object"], "chat.completion.chunk");
    EXPECT_TRUE(data.at("usage").is_null());
    const json& choice = data["choices"][0];
    const int index = choice["index"];
    EXPECT_EQ(choice["delta"].value("role", "assistant"), "assistant");
    texts[index] += choice["delta"].value("content", "");
    if (!choice["finish_reason"].is_null()) reasons[index] += choice["finish_reason"];
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(texts[i], whole["choices"][i]["message"]["content"]);
    EXPECT_EQ(reasons[i], whole["choices"][i]["finish_reason"]);
  }
}

TEST_F(Serve, LogProbabilitiesAreThoseOfScore) {
  const Ids prompt = kPrompts[0];
  const json answer =
      server()
          .post("/v1/completions", {{"prompt", prompt}, {"max_tokens", 8}, {"logprobs", 2}})
          .json();
  const json log_probs = answer["choices"][0]["logprobs"];
  Ids all = prompt;
  const json tokens =
      server()
          .post("/generate", {{"prompt", prompt}, {"sampling_params", {{"max_tokens", 8}}}})
          .json()["result"]["output_ids"];
  for (const json& token : tokens) all.push_back(token);

  model::TemporaryDirectory directory;
  auto words = command_line("score", tiny_configuration(1), {all}, directory);
  const std::string report = directory.path() / "scores.json";
  words.insert(words.end(), {"--json", report});
  EXPECT_EQ(run_troupe(words).status, 0);
  const json scores = json::parse(model::read_file(report))["inputs"][0]["log_probs"];
  ASSERT_EQ(log_probs["tokens"].size(), 8);
  std::string text;
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(log_probs["token_logprobs"][i].get<double>(),
                scores[prompt.size() - 1 + i].get<double>(), 1e-5);
    EXPECT_EQ(log_probs["text_offset"][i], text.size());
    text += log_probs["tokens"][i];
    double most = -1e9;
    for (const auto& [token, value] : log_probs["top_logprobs"][i].items())
      most = std::max(most, value.get<double>());
    EXPECT_EQ(log_probs["token_logprobs"][i], most);  // greedy
  }
  EXPECT_EQ(text, answer["choices"][0]["text"]);
}

TEST_F(Serve, AChatsNextTurnFindsTheFormerOneInTheCache) {
  const Ids prompt(300, 5);  // two blocks and more
  const json request = {{"prompt", prompt}, {"max_tokens", 2}};
  server().post("/v1/completions", request);
  const json again = server().post("/v1/completions", request).json();

  EXPECT_EQ(again["usage"]["prompt_tokens_details"]["cached_tokens"], 256);
}

TEST_F(Serve, ErrorsHaveOpenAisForm) {
  expect_error(server().get("/v1/nothing"), 404, nullptr, nullptr);
  expect_error(server().get("/v1/completions"), 405, nullptr, nullptr);
  expect_error(server().post("/v1/completions", {{"prompt", "a"}, {"model", "gpt-4"}}), 404,
               "model", "model_not_found");
  expect_error(server().post("/v1/completions", {{"prompt", Ids(5000, 5)}}), 400, "prompt",
               "context_length_exceeded");
  expect_error(server().post("/v1/chat/completions", {{"messages", 5}}), 400, "messages", nullptr);
  HttpClient form(server().port());
  form.send("POST /generate HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
  expect_error(form.receive(), 415, nullptr, nullptr);
  // An error costs no connection.
  HttpClient client(server().port());
  EXPECT_EQ(client.post("/generate", {{"prompt", 5}}).status, 400);
  EXPECT_EQ(client.get("/health").status, 200);
}

TEST_F(Serve, TheOtherEndpointsAnswer) {
  EXPECT_EQ(server().get("/v1/models").json()["data"][0]["id"], "tiny");
  EXPECT_EQ(server().get("/v1/models/tiny").json()["object"], "model");
  for (const char* path : {"/health", "/ready", "/live"}) EXPECT_EQ(server().get(path).status, 200);
  const json tokens = server().post("/tokenize", {{"prompt", "Once upon a time"}}).json();
  EXPECT_EQ(tokens["tokens"], (Ids{0, 427, 439, 261, 400}));
  EXPECT_EQ(tokens["count"], 5);
  EXPECT_EQ(server().post("/detokenize", {{"tokens", {427, 439}}}).json()["prompt"], "Once upon");
  EXPECT_NE(server().get("/metrics").body.find("troupe:time_to_first_token_seconds_bucket"),
            std::string::npos);
  const ClientResponse page = server().get("/");
  EXPECT_TRUE(page.body.starts_with("<!doctype html>"));
  EXPECT_EQ(page.body.find("http://"), std::string::npos);  // nothing from elsewhere
}

TEST_F(Serve, WhatAClientThatLeavesHadAskedForEnds) {
  const int64_t before = server().status()["generation_tokens"];
  {
    const HttpClient stream = server().start_stream();
    const HttpClient another = server().start_stream();
    EXPECT_EQ(server().status()["running"], 2);
  }
  server().wait_until_idle();

  EXPECT_LT(server().status()["generation_tokens"].get<int64_t>() - before, 2 * 1900);
}

TEST_F(Serve, BenchServeSendsTheLoadItWasAskedFor) {
  const model::TemporaryDirectory directory;
  const std::string trace = directory.write("trace.csv", "0,5,7\n0,300,3\n0.05,9,1\n");
  const std::string report = directory.path() / "load.json";
  const std::string url = fmt::format("http://127.0.0.1:{}", server().port());
  const Ended ended = run_troupe({"bench", "serve", "--url", url, "--trace", trace, "--concurrency",
                                  "2", "--goodput", "e2el:60000", "--json", report});
  ASSERT_EQ(ended.status, 0) << ended.err;
  const json figures = json::parse(model::read_file(report));

  EXPECT_EQ(figures["model_id"], "tiny");
  EXPECT_EQ(figures["completed"], 3);
  EXPECT_EQ(figures["total_input_tokens"], 5 + 300 + 9);
  EXPECT_EQ(figures["total_output_tokens"], 7 + 3 + 1);
  EXPECT_EQ(figures["request_goodput"], figures["request_throughput"]);
  for (const char* name : {"mean_ttft_ms", "median_tpot_ms", "p99_itl_ms", "p90_e2el_ms"})
    EXPECT_GT(figures.at(name), 0) << name;
  EXPECT_EQ(run_troupe({"bench", "serve", "--url", "http://127.0.0.1:1"}).status, 2);
  EXPECT_EQ(run_troupe({"bench", "serve"}).status, 2);
}

TEST(ServeLimits, RequestsBeyondTheQueueAreToldToComeAgain) {
  json config = tiny_configuration(1);
  config["scheduler_config"]["batch_size"] = 1;
  const Server server(config, {"--max-queued-requests", "1"});
  std::optional<HttpClient> running(server.start_stream());
  HttpClient waiting(server.port());
  waiting.send(serve::post_text("/generate", R"({"prompt": "Once"})"));
  wait_until("it waits", [&] { return server.status()["waiting"] == 1; });
  const ClientResponse refused = server.post("/generate", {{"prompt", "Once"}});

  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.fields.at("retry-after"), "1");
  EXPECT_EQ(refused.json()["error"]["code"], "queue_full");
  running.reset();
  EXPECT_EQ(waiting.receive().status, 200);
  EXPECT_EQ(server.post("/generate", {{"prompt", "Once"}}).status, 200);
}

TEST(ServeLimits, AKeyIsAskedForWhereOneIsSet) {
  const Server server(tiny_configuration(1), {}, {{"TROUPE_API_KEY", "secret"}});
  const auto status = [&](const std::string& field) {
    HttpClient client(server.port());
    client.send("GET /v1/models HTTP/1.1\r\nHost: h\r\n" + field + "\r\n");
    return client.receive().status;
  };

  EXPECT_EQ(status(""), 401);
  EXPECT_EQ(status("Authorization: Bearer secre\r\n"), 401);
  EXPECT_EQ(status("Authorization: Bearer secrett\r\n"), 401);
  EXPECT_EQ(status("Authorization: Bearer \r\n"), 401);
  EXPECT_EQ(status("Authorization: Bearer secret\r\n"), 200);
  EXPECT_EQ(server.get("/metrics").status, 401);
  EXPECT_EQ(server.get("/health").status, 200);
}

TEST(ServeEnd, SigtermLetsOpenRequestsFinishAndTakesNoMore) {
  Server server(tiny_configuration(2));
  HttpClient open = server.start_stream(600);
  ::kill(server.process().pid(), SIGTERM);
  wait_until("it drains", [&] { return server.get("/ready").status == 503; });
  const ClientResponse refused = server.post("/generate", {{"prompt", "Once"}});
  EXPECT_EQ(server.get("/live").status, 200);
  const ClientResponse answer = open.receive();
  const Ended ended = server.process().wait();

  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.fields.at("retry-after"), "1");
  EXPECT_TRUE(answer.whole);
  EXPECT_EQ(answer.events().back(), "[DONE]");
  EXPECT_EQ(ended.status, 0);
  EXPECT_EQ(ended.err, "");
}

TEST(ServeEnd, ASecondSignalEndsAtOnce) {
  Server server(tiny_configuration(1));
  const HttpClient open = server.start_stream();
  ::kill(server.process().pid(), SIGINT);
  wait_until("it drains", [&] { return server.get("/ready").status == 503; });
  ::kill(server.process().pid(), SIGINT);
  const Ended ended = server.process().wait();

  EXPECT_EQ(ended.status, 130);
  EXPECT_TRUE(server.process().processes().empty());
}

TEST(ServeEnd, TheDeathOfARankIsToldToClientsAndEndsTheServer) {
  Server server(tiny_configuration(2));
  HttpClient stream = server.start_stream();
  HttpClient whole(server.port());
  whole.send(serve::post_text("/v1/completions",
                              R"({"prompt": "Once", "max_tokens": 1900, "ignore_eos": true})"));
  wait_until("both run", [&] { return server.status()["running"] == 2; });
  ::kill(server.process().rank_pid(1), SIGKILL);
  const std::vector<std::string> events = stream.receive().events();
  const ClientResponse refused = whole.receive();
  const Ended ended = server.process().wait();

  EXPECT_NE(json::parse(events.back())["error"]["message"].get<std::string>().find("rank 1"),
            std::string::npos);
  EXPECT_EQ(refused.status, 500);
  EXPECT_NE(refused.json()["error"]["message"].get<std::string>().find("SIGKILL"),
            std::string::npos);
  EXPECT_EQ(ended.status, 3);
  EXPECT_TRUE(ended.error_lines().back().starts_with("troupe: rank 1 ")) << ended.err;
}

TEST(ServeStart, SaysWhatIsWrongBeforeRanksStart) {
  model::TemporaryDirectory directory;
  const auto words = [&](std::vector<std::string> more) {
    std::vector<std::string> all = command_line("serve", tiny_configuration(1), {}, directory);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_EQ(run_troupe(words({"--host", "192.0.2.1"})).status, 2);
  EXPECT_EQ(run_troupe(words({"--port", "70000"})).status, 2);
  EXPECT_EQ(run_troupe(words({"--chat-template", "nowhere.jinja"})).status, 2);
}

}  // namespace
}  // namespace troupe::system_tests
