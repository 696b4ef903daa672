// Prefill and decode in instances of their own, as clients and operators meet them: the tokens of
// `troupe run`, whoever leaves or dies, and blocks that all come back.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "tests/serve/http_client.h"
#include "tests/system/jobs.h"

namespace troupe::system_tests {
namespace {

using serve::ClientResponse;
using serve::HttpClient;
using Words = std::vector<std::string>;

constexpr int kBlockSize = 32;

json pool(int world_size, int attn_tp_size, int next_n) {
  json config = configuration(tiny_moe(), world_size, "bfloat16");
  config["model_config"]["next_n"] = next_n;
  config["parallel_config"]["attn_tp_size"] = attn_tp_size;
  config["scheduler_config"]["block_size"] = kBlockSize;
  config["runtime_config"]["comm_buffer_mb"] = 2;
  return config;
}

// The process that answers HTTP, and what can be asked of it.
class Endpoint {
 public:
  explicit Endpoint(const Words& words, const TroupeProcess::Environment& environment = {})
      : process_(words, environment) {
    process_.wait_until("it serves", [&] { return process_.out_so_far().ends_with("\n"); });
    const std::string line = process_.out_so_far();
    port_ = std::stoi(line.substr(line.rfind(':') + 1));
  }

  int port() const { return port_; }
  TroupeProcess& process() { return process_; }
  ClientResponse post(const std::string& path, const json& body) const {
    return serve::post(port_, path, body);
  }
  json status() const { return serve::get(port_, "/status").json(); }
  json pool_of(const std::string& role) const {
    const json now = status();
    for (const json& pool : now["pools"])
      if (pool["role"] == role) return pool;
    return nullptr;
  }
  int num_pools() const { return static_cast<int>(status()["pools"].size()); }
  // Nothing is under way, and no block is in use or held, anywhere.
  void wait_until_idle(int pools = 2) const {
    wait_until("all blocks are back", [&] {
      const json now = status();
      if (std::ssize(now["pools"]) != pools) return false;
      for (const json& pool : now["pools"])
        for (const char* key : {"open", "running", "waiting", "held", "kv_blocks_in_use"})
          if (pool[key] != 0) return false;
      return true;
    });
  }
  HttpClient start(const json& body) const {
    HttpClient client(port_);
    client.send(serve::post_text("/generate", body.dump()));
    return client;
  }
  // The prompt fills blocks that are read where they lie for as long as the answer is made.
  HttpClient start_stream(int max_tokens = 1500) const {
    std::string prompt;
    for (int i = 0; i < 10; ++i) prompt += "Once upon a time there was a little fox. ";
    HttpClient client(port_);
    client.send(serve::post_text(
        "/v1/completions",
        json{{"prompt", prompt}, {"max_tokens", max_tokens}, {"ignore_eos", true}, {"stream", true}}
            .dump()));
    client.receive_until("\"text\":");
    return client;
  }

 private:
  TroupeProcess process_;
  int port_ = 0;
};

// Both pools and the endpoint before them, as one command starts them.
class Separated {
 public:
  Separated(const json& prefill, const json& decode, const Words& options = {},
            const TroupeProcess::Environment& environment = {})
      : endpoint_(words(prefill, decode, options), environment) {}
  Endpoint* operator->() { return &endpoint_; }

 private:
  Words words(const json& prefill, const json& decode, const Words& options) {
    directory_.write("prefill.yaml", prefill.dump());
    directory_.write("decode.yaml", decode.dump());
    Words all{"--log-level",
              "error",
              "serve",
              "--config",
              directory_.path().string(),
              "--port",
              "0",
              "--served-model-name",
              "tiny"};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }

  model::TemporaryDirectory directory_;
  Endpoint endpoint_;
};

// Prompts around the edges of blocks.
std::vector<Ids> prompts() {
  std::vector<Ids> all;
  for (const int length : {1, 31, 32, 33, 64, 150}) {
    Ids prompt;
    for (int i = 0; i < length; ++i) prompt.push_back(1 + (length * 37 + i * 11) % 500);
    all.push_back(prompt);
  }
  return all;
}

json generate_body(const Ids& prompt, bool sampled) {
  json settings = {{"max_tokens", 24}, {"ignore_eos", true}};
  if (sampled) settings.update({{"temperature", 0.9}, {"top_p", 0.95}, {"seed", 11}});
  return {{"prompt", prompt}, {"sampling_params", settings}};
}

// All prompts twice, at once.
void expect_tokens(const Endpoint& endpoint, const std::vector<Ids>& expected, bool sampled) {
  std::vector<HttpClient> clients;
  for (int round = 0; round < 2; ++round)
    for (const Ids& prompt : prompts())
      clients.push_back(endpoint.start(generate_body(prompt, sampled)));
  for (size_t i = 0; i < clients.size(); ++i) {
    const ClientResponse answer = clients[i].receive();
    ASSERT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.json()["result"]["output_ids"], expected[i % expected.size()]) << i;
  }
}

struct PoolsCase {
  const char* name;
  int prefill_ranks, prefill_tp, decode_ranks, decode_tp, next_n;
  const char* handoff;
};

class Pools : public testing::TestWithParam<PoolsCase> {};

TEST_P(Pools, TokensAreThoseOfARun) {
  const PoolsCase& c = GetParam();
  json one = pool(1, 1, 0);
  const std::vector<Ids> greedy = output_ids(generate(one, prompts()));
  one["data_config"] = {{"temperature", 0.9}, {"top_p", 0.95}, {"seed", 11}};
  const std::vector<Ids> sampled = output_ids(generate(one, prompts()));
  Separated server(pool(c.prefill_ranks, c.prefill_tp, c.next_n),
                   pool(c.decode_ranks, c.decode_tp, c.next_n), {"--kv-handoff", c.handoff},
                   {{"TROUPE_KV_CHECKSUM", "1"}});

  expect_tokens(*server.operator->(), greedy, false);
  expect_tokens(*server.operator->(), sampled, true);
  server->wait_until_idle();
  const json decode = server->pool_of("decode");
  EXPECT_EQ(decode["handoffs"], 24);
  EXPECT_EQ(decode["mapped_blocks"] > 0, std::string(c.handoff) == "map");
  const Ended ended = (::kill(server->process().pid(), SIGTERM), server->process().wait());
  EXPECT_EQ(ended.status, 0);
  EXPECT_EQ(ended.err, "");
  EXPECT_TRUE(server->process().processes().empty());
}

INSTANTIATE_TEST_SUITE_P(Layouts, Pools,
                         testing::Values(PoolsCase{"tp4_dp16", 4, 4, 16, 1, 1, "map"},
                                         PoolsCase{"dp2_tp2", 2, 1, 2, 2, 0, "map"},
                                         PoolsCase{"tp2_dp2_pull", 2, 2, 2, 1, 2, "pull"}),
                         [](const auto& test) { return test.param.name; });

TEST(Separation, AnswersHaveTheFormThatOneLaunchGives) {
  Separated server(pool(1, 1, 1), pool(2, 1, 1));
  model::TemporaryDirectory directory;
  Words words = command_line("serve", pool(1, 1, 1), {}, directory);
  words.insert(words.end(), {"--port", "0", "--served-model-name", "tiny"});
  const Endpoint mixed(words);
  const json requests[] = {{{"prompt", "One day"},
                            {"n", 3},
                            {"stop", " the"},
                            {"temperature", 0.9},
                            {"seed", 7},
                            {"max_tokens", 30},
                            {"logprobs", 2}},
                           {{"prompt", "Once upon a time"}, {"max_tokens", 1}, {"logprobs", 1}},
                           {{"prompt", {"She", "He was"}},
                            {"max_tokens", 12},
                            {"frequency_penalty", 1.5},
                            {"logit_bias", {{"427", 3}}}}};
  for (json request : requests) {
    const json a = server->post("/v1/completions", request).json();
    const json b = mixed.post("/v1/completions", request).json();
    EXPECT_EQ(a["choices"], b["choices"]) << request;
    EXPECT_EQ(a["usage"], b["usage"]) << request;
  }
  server->wait_until_idle();
}

TEST(Separation, WhatAClientThatLeavesHadAskedForEndsOnBothSides) {
  Separated server(pool(2, 1, 1), pool(2, 1, 1));
  {
    const HttpClient stream = server->start_stream(), another = server->start_stream();
    wait_until("both are there", [&] { return server->pool_of("decode")["open"] == 2; });
    std::vector<HttpClient> before_their_first_token;
    for (int i = 0; i < 20; ++i)
      before_their_first_token.push_back(server->start(
          {{"prompt", Ids(1200, 5 + i)}, {"sampling_params", {{"max_tokens", 500}}}}));
  }
  server->wait_until_idle();
  EXPECT_EQ(server->post("/generate", generate_body({1, 2, 3}, false)).status, 200);
}

// ---- deaths -------------------------------------------------------------------------------------

std::vector<int> children_of(int pid) {
  std::vector<int> children;
  std::string text = proc_file(pid, fmt::format("task/{}/children", pid));
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find(' ', at);
    if (end == std::string::npos) break;
    children.push_back(std::stoi(text.substr(at, end - at)));
    at = end + 1;
  }
  return children;
}

TEST(Separation, ARankThatDiesFailsTheRequestsOfItsInstanceWhichComesBack) {
  Separated server(pool(2, 1, 1), pool(2, 1, 1));
  const json expected = server->post("/generate", generate_body({1, 2, 3}, false)).json()["result"];
  wait_until("both are shown", [&] { return server->num_pools() == 2; });
  for (const char* role : {"decode", "prefill"}) {
    HttpClient open = server->start_stream();
    const int instance = server->pool_of(role)["pid"];
    ::kill(children_of(instance).at(1), SIGKILL);
    if (role == std::string("decode")) {
      const std::string last = open.receive().events().back();
      const std::string message = json::parse(last)["error"]["message"];
      EXPECT_NE(message.find("decode"), std::string::npos) << message;
    } else {
      open.close();  // its prompt had been read: that prefill is dead does not concern it
    }
    wait_until("it is back", [&] {
      const json now = server->pool_of(role);
      return now.is_object() && now["pid"] != instance && server->num_pools() == 2;
    });
    const json answer = server->post("/generate", generate_body({1, 2, 3}, false)).json();
    EXPECT_EQ(answer["result"], expected) << role;
    if (role == std::string("decode"))
      wait_until("the lease of its blocks is over",
                 [&] { return server->pool_of("prefill")["revoked"] == 1; });
    server->wait_until_idle();
  }
}

TEST(Separation, AReaderThatWasSilentForTheLeaseLearnsThatItsBlocksAreNotItsOwn) {
  Separated server(pool(1, 1, 1), pool(1, 1, 1));
  wait_until("both are shown", [&] { return server->num_pools() == 2; });
  const int decode = server->pool_of("decode")["pid"];
  HttpClient stream = server->start_stream();
  ::kill(decode, SIGSTOP);
  wait_until("its blocks are back", [&] {
    const json prefill = server->pool_of("prefill");
    return prefill["revoked"] == 1 && prefill["kv_blocks_in_use"] == 0;
  });
  HttpClient next = server->start(generate_body(Ids(100, 9), false));  // writes where it read
  wait_until("the next prompt is read", [&] { return server->pool_of("prefill")["held"] == 1; });
  ::kill(decode, SIGCONT);

  const json last = json::parse(stream.receive().events().back());
  EXPECT_NE(last["error"]["message"].get<std::string>().find("taken back"), std::string::npos)
      << last;
  EXPECT_EQ(next.receive().status, 200);
  server->wait_until_idle();
}

// Router and instances as processes of their own.
class Parts {
 public:
  explicit Parts(const std::string& name) : name_(name) {
    directory_.write("prefill.yaml", pool(1, 1, 1).dump());
    directory_.write("decode.yaml", pool(2, 1, 1).dump());
  }
  Words words(const std::string& role, const Words& more = {}) const {
    Words all{"--log-level", "error", "serve",    "--config", directory_.path().string(),
              "--pd-role",   role,    "--router", name_};
    if (role == "router") all.insert(all.end(), {"--port", "0", "--served-model-name", "tiny"});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

 private:
  std::string name_;
  model::TemporaryDirectory directory_;
};

TEST(Separation, InstancesJoinAndLeaveAndOutliveTheirRouter) {
  const Parts parts(fmt::format("test-{}", ::getpid()));
  TroupeProcess prefill(parts.words("prefill")), decode(parts.words("decode"));
  auto router = std::make_unique<Endpoint>(parts.words("router"));
  const json expected = router->post("/generate", generate_body({1, 2, 3}, false)).json()["result"];
  {
    TroupeProcess more(parts.words("decode"));
    wait_until("it has joined", [&] { return router->num_pools() == 3; });
    HttpClient first = router->start_stream(300), second = router->start_stream(300);
    wait_until("each decode instance has one", [&] {
      const json now = router->status();
      int with_one = 0;
      for (const json& pool : now["pools"])
        with_one += pool["role"] == "decode" && pool["open"] == 1;
      return with_one == 2;
    });
    ::kill(more.pid(), SIGTERM);
    EXPECT_EQ(first.receive().events().back(), "[DONE]");
    EXPECT_EQ(second.receive().events().back(), "[DONE]");
    EXPECT_EQ(more.wait().status, 0);
  }
  router->wait_until_idle();

  HttpClient open = router->start_stream();
  ::kill(router->process().pid(), SIGKILL);
  router->process().wait();
  EXPECT_FALSE(open.receive().whole);
  router = std::make_unique<Endpoint>(parts.words("router"));
  EXPECT_EQ(router->post("/generate", generate_body({1, 2, 3}, false)).json()["result"], expected);
  router->wait_until_idle();
}

TEST(Separation, AnInstanceThatDoesNotFitTheOthersIsToldWhy) {
  const Parts parts(fmt::format("test-fit-{}", ::getpid()));
  TroupeProcess prefill(parts.words("prefill")), decode(parts.words("decode"));
  const Endpoint router(parts.words("router"));

  const Ended other_blocks =
      run_troupe(parts.words("decode", {"--set", "scheduler_config.block_size=64"}));
  EXPECT_EQ(other_blocks.status, 2);
  EXPECT_NE(other_blocks.err.find("block_size is 64 here and 32 there"), std::string::npos)
      << other_blocks.err;
  const Ended no_mtp = run_troupe(parts.words("prefill", {"--set", "model_config.next_n=0"}));
  EXPECT_EQ(no_mtp.status, 2);
  EXPECT_NE(no_mtp.err.find("next_n"), std::string::npos) << no_mtp.err;
  const Ended second_router = run_troupe(parts.words("router"));
  EXPECT_EQ(second_router.status, 2);
  EXPECT_NE(second_router.err.find("runs already"), std::string::npos) << second_router.err;
}

}  // namespace
}  // namespace troupe::system_tests
