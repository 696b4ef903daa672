// What a client may ask for, and how it is told what it may not.
#include "serve/generation_request.h"

#include <gtest/gtest.h>

#include "serve/api_error.h"

namespace troupe::serve {
namespace {

using Ids = std::vector<int32_t>;

constexpr int64_t kMostPositions = 100;

class GenerationRequestTest : public testing::Test {
 protected:
  static const ServedModel& model() {
    static const launcher::Config config = [] {
      launcher::Config c;
      c.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
      c.data.temperature = 0.25;
      c.data.top_k = 7;
      c.scheduler.max_new_tokens = 33;
      return c;
    }();
    static const model::ModelConfig model = model::read_model_config(config.model.model_path);
    static const ServedModel served(config, model, "tiny", {});
    return served;
  }
  static GenerationRequest parse(Endpoint endpoint, const Json& body) {
    return parse_generation_request(endpoint, body.dump(), model(), kMostPositions);
  }
  static GenerationRequest completion(Json more) {
    more["prompt"] = "Once";
    return parse(Endpoint::kCompletions, more);
  }
  static GenerationRequest chat(Json more) {
    if (!more.contains("messages")) more["messages"] = {{{"role", "user"}, {"content", "Hi"}}};
    return parse(Endpoint::kChat, more);
  }
  // The error that a body gives; a status of 0 when it is taken.
  static ApiError error(Endpoint endpoint, const std::string& body) {
    try {
      parse_generation_request(endpoint, body, model(), kMostPositions);
    } catch (const ApiError& error) {
      return error;
    }
    return {0, ""};
  }
  static void expect_refused(Endpoint endpoint, const Json& more, const std::string& param,
                             const std::string& words = "") {
    Json body = more;
    if (endpoint == Endpoint::kChat && !body.contains("messages"))
      body["messages"] = {{{"role", "user"}, {"content", "Hi"}}};
    if (endpoint == Endpoint::kCompletions && !body.contains("prompt")) body["prompt"] = "Once";
    const ApiError refused = error(endpoint, body.dump());
    EXPECT_EQ(refused.status(), 400) << body;
    EXPECT_EQ(refused.param(), param) << body;
    EXPECT_NE(std::string(refused.what()).find(words), std::string::npos) << refused.what();
  }
};

TEST_F(GenerationRequestTest, TakesWhatTheClientDoesNotSayFromTheConfiguration) {
  const GenerationRequest request = completion(Json::object());

  EXPECT_EQ(request.prompts, (std::vector<Ids>{model().tokenizer.encode("Once")}));
  EXPECT_EQ(request.settings.temperature, 0.25f);
  EXPECT_EQ(request.settings.top_k, 7);
  EXPECT_EQ(request.settings.top_p, 1.0f);
  EXPECT_EQ(request.settings.max_new_tokens, 16);
  EXPECT_EQ(request.settings.stop_ids, (std::set<int32_t>{1}));
  EXPECT_EQ(request.settings.top_log_probs, -1);
  EXPECT_EQ(request.n, 1);
  EXPECT_FALSE(request.stream);
}

TEST_F(GenerationRequestTest, ReadsEverySetting) {
  const GenerationRequest r = completion({{"model", "tiny"},
                                          {"temperature", 1.5},
                                          {"top_p", 0.5},
                                          {"top_k", -1},
                                          {"min_p", 0.1},
                                          {"seed", -3},
                                          {"n", 2},
                                          {"stop", {"a", "b"}},
                                          {"stop_token_ids", {5}},
                                          {"ignore_eos", true},
                                          {"logprobs", 3},
                                          {"max_tokens", 9},
                                          {"stream", true},
                                          {"presence_penalty", 0.5},
                                          {"frequency_penalty", -0.5},
                                          {"repetition_penalty", 1.25},
                                          {"logit_bias", {{"12", -100}, {"7", 2.5}}},
                                          {"stream_options", {{"include_usage", true}}},
                                          {"user", "me"}});

  EXPECT_EQ(r.settings.temperature, 1.5f);
  EXPECT_EQ(r.settings.top_p, 0.5f);
  EXPECT_EQ(r.settings.top_k, 0);  // all
  EXPECT_EQ(r.settings.min_p, 0.1f);
  EXPECT_EQ(r.settings.seed, static_cast<uint64_t>(-3));
  EXPECT_EQ(r.settings.presence_penalty, 0.5f);
  EXPECT_EQ(r.settings.frequency_penalty, -0.5f);
  EXPECT_EQ(r.settings.repetition_penalty, 1.25f);
  EXPECT_EQ(r.settings.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{12, -100.0f}, {7, 2.5f}}));
  EXPECT_EQ(r.settings.stop_ids, (std::set<int32_t>{5}));
  EXPECT_EQ(r.settings.top_log_probs, 3);
  EXPECT_EQ(r.settings.max_new_tokens, 9);
  EXPECT_EQ(r.n, 2);
  EXPECT_EQ(r.stops, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(r.stream && r.include_usage);
}

TEST_F(GenerationRequestTest, APromptIsATextOrIdsOrSeveralOfThese) {
  const auto prompts = [](const Json& prompt) {
    return parse(Endpoint::kCompletions, {{"prompt", prompt}}).prompts;
  };
  const Ids once = model().tokenizer.encode("Once"), one = model().tokenizer.encode("One");
  EXPECT_EQ(prompts("Once"), (std::vector<Ids>{once}));
  EXPECT_EQ(prompts({"Once", "One"}), (std::vector<Ids>{once, one}));
  EXPECT_EQ(prompts({3, 4}), (std::vector<Ids>{{3, 4}}));
  EXPECT_EQ(prompts({{3, 4}, {5}}), (std::vector<Ids>{{3, 4}, {5}}));
  for (const Json& wrong : {Json::array(), Json(3), Json({{3}, "a", 2}), Json({3, 4096}),
                            Json({-1}), Json(Json::object()), Json({1.5})})
    expect_refused(Endpoint::kCompletions, {{"prompt", wrong}}, "prompt");
}

TEST_F(GenerationRequestTest, WritesAChatAsItsTemplateSays) {
  const GenerationRequest request =
      chat({{"messages",
             {{{"role", "user"},
               {"content",
                {{{"type", "text"}, {"text", "Tell"}}, {{"type", "text"}, {"text", " me"}}}}}}},
            {"logprobs", true},
            {"top_logprobs", 2}});
  model::Conversation conversation;
  conversation.messages = {{{"role", "user"}, {"content", "Tell me"}}};

  EXPECT_EQ(request.prompts[0],
            model().tokenizer.encode(model().chat->render(conversation), false));
  EXPECT_EQ(request.settings.top_log_probs, 2);
  EXPECT_GE(request.settings.max_new_tokens, kMostPositions);  // as many as there is room for
  EXPECT_EQ(chat({{"max_tokens", 5}}).settings.max_new_tokens, 5);
  EXPECT_EQ(chat({{"max_tokens", 5}, {"max_completion_tokens", 6}}).settings.max_new_tokens, 6);
}

TEST_F(GenerationRequestTest, AnotherSeedIsDrawnForEveryRequestThatNamesNone) {
  EXPECT_NE(completion(Json::object()).settings.seed, completion(Json::object()).settings.seed);
}

TEST_F(GenerationRequestTest, GenerateHasTheFormOfCannRecipes) {
  const GenerationRequest plain = parse(Endpoint::kGenerate, {{"prompt", "Once"}});
  EXPECT_EQ(plain.settings.max_new_tokens, 33);
  const GenerationRequest more =
      parse(Endpoint::kGenerate,
            {{"prompt", "Once"}, {"sampling_params", {{"max_tokens", 4}, {"temperature", 0}}}});
  EXPECT_EQ(more.settings.max_new_tokens, 4);
  expect_refused(Endpoint::kGenerate, {{"prompt", "a"}, {"sampling_params", {{"logprobs", 1}}}},
                 "logprobs");
  expect_refused(Endpoint::kGenerate, {{"prompt", "a"}, {"bootstrap_room", 1}}, "bootstrap_room");
}

TEST_F(GenerationRequestTest, RefusesByNameWhatItCannotDo) {
  const Json tool = {{"type", "function"}, {"function", {{"name", "f"}}}};
  expect_refused(Endpoint::kChat, {{"response_format", {{"type", "json_object"}}}},
                 "response_format", "not supported");
  expect_refused(Endpoint::kChat, {{"tools", {tool}}}, "tools");
  expect_refused(Endpoint::kChat, {{"tool_choice", "required"}}, "tool_choice");
  expect_refused(Endpoint::kChat, {{"functions", {tool}}}, "functions");
  expect_refused(Endpoint::kChat, {{"reasoning_effort", "high"}}, "reasoning_effort");
  expect_refused(Endpoint::kChat, {{"audio", {{"voice", "a"}}}}, "audio");
  expect_refused(Endpoint::kChat, {{"prompt", "a"}}, "prompt");
  expect_refused(Endpoint::kCompletions, {{"best_of", 2}}, "best_of");
  expect_refused(Endpoint::kCompletions, {{"suffix", "end"}}, "suffix");
  expect_refused(Endpoint::kCompletions, {{"echo", true}}, "echo");
  expect_refused(Endpoint::kCompletions, {{"tmeperature", 1}}, "tmeperature");
  // What is said to be as it is anyway is no reason to refuse.
  EXPECT_NO_THROW(chat({{"response_format", {{"type", "text"}}},
                        {"tools", Json::array()},
                        {"store", false},
                        {"temperature", nullptr}}));
  EXPECT_NO_THROW(completion({{"best_of", 1}, {"echo", false}, {"suffix", nullptr}}));
}

TEST_F(GenerationRequestTest, ChecksEveryNumber) {
  const std::vector<std::pair<const char*, std::vector<Json>>> wrong = {
      {"temperature", {-0.1, 2.1, 1e308, "1", true, Json::array()}},
      {"top_p", {0, -1, 1.1, "x"}},
      {"top_k", {-2, 1.5, int64_t{1} << 40, UINT64_MAX}},
      {"min_p", {-0.1, 1.1}},
      {"seed", {1.5, UINT64_MAX, "1"}},
      {"n", {0, -1, 129, INT64_MAX, 1.5}},
      {"max_tokens", {0, -1, UINT64_MAX, 1e10, "5"}},
      {"logprobs", {-1, 21, true}},
      {"presence_penalty", {-2.1, 2.1}},
      {"repetition_penalty", {0, -1}},
      {"stop", {5, {""}, "", {1}, Json(std::vector<std::string>(17, "x")), std::string(1025, 'x')}},
      {"stop_token_ids", {{-1}, {4096}, 5, {"a"}}},
      {"logit_bias", {{{"4096", 1}}, {{"-1", 1}}, {{"a", 1}}, {{"1", 101}}, {{"1", "x"}}, 5}},
      {"stream", {1, "true"}},
      {"stream_options", {{{"include_usage", true}}}},  // without stream
      {"ignore_eos", {0}}};
  for (const auto& [name, values] : wrong)
    for (const Json& value : values) expect_refused(Endpoint::kCompletions, {{name, value}}, name);
  for (const char* body : {R"({"prompt": "a", "temperature": 1e999})",
                           R"({"prompt": "a", "max_tokens": 99999999999999999999999999})",
                           R"({"prompt": "a", "temperature": NaN})"})
    EXPECT_EQ(error(Endpoint::kCompletions, body).status(), 400) << body;
}

TEST_F(GenerationRequestTest, ChecksMessages) {
  const auto refused = [](const Json& messages, const std::string& param) {
    expect_refused(Endpoint::kChat, {{"messages", messages}}, param);
  };
  refused(Json::array(), "messages");
  refused("Hi", "messages");
  refused({"Hi"}, "messages[0]");
  refused({{{"role", "robot"}, {"content", "Hi"}}}, "messages[0].role");
  refused({{{"role", "user"}}}, "messages[0].content");
  refused({{{"role", "user"}, {"content", {{{"type", "image_url"}}}}}}, "messages[0].content");
  EXPECT_EQ(error(Endpoint::kChat, "{}").param(), "messages");
}

TEST_F(GenerationRequestTest, RefusesBodiesThatAreNoJsonObject) {
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("{\"prompt\": \"\xff\"}"),
        std::string("\0{}", 3), std::string(100'000, '['), R"({"a":)" + std::string(100'000, '[')})
    EXPECT_EQ(error(Endpoint::kCompletions, body).status(), 400) << body.substr(0, 40);
}

TEST_F(GenerationRequestTest, ANULInAPromptIsACharacterLikeOthers) {
  EXPECT_EQ(parse(Endpoint::kCompletions, {{"prompt", std::string("a\0b", 3)}}).prompts[0],
            model().tokenizer.encode(std::string("a\0b", 3)));
}

TEST_F(GenerationRequestTest, SaysHowLongAPromptMayBe) {
  const Json body = {{"prompt", Ids(kMostPositions, 5)}};
  const ApiError refused = error(Endpoint::kCompletions, body.dump());
  EXPECT_EQ(refused.code(), "context_length_exceeded");
  EXPECT_NE(std::string(refused.what()).find("100"), std::string::npos);
  EXPECT_NO_THROW(parse(Endpoint::kCompletions, {{"prompt", Ids(kMostPositions - 1, 5)}}));
}

TEST_F(GenerationRequestTest, AModelThatIsNotHereIsNotFound) {
  const ApiError refused = error(Endpoint::kCompletions, R"({"model": "gpt-4", "prompt": "a"})");
  EXPECT_EQ(refused.status(), 404);
  EXPECT_EQ(refused.code(), "model_not_found");
}

}  // namespace
}  // namespace troupe::serve
