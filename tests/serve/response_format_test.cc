#include "serve/response_format.h"

#include <gtest/gtest.h>

namespace troupe::serve {
namespace {

using nlohmann::json;

class ResponseFormatTest : public testing::Test {
 protected:
  static const ServedModel& model() {
    static const launcher::Config config = [] {
      launcher::Config c;
      c.model.model_path = TROUPE_SOURCE_DIR "/models/tiny-moe";
      return c;
    }();
    static const model::ModelConfig model = model::read_model_config(config.model.model_path);
    static const ServedModel served(config, model, "tiny", {});
    return served;
  }
  static std::unique_ptr<ResponseFormat> format(Endpoint endpoint, int top_log_probs = -1) {
    GenerationRequest request;
    request.endpoint = endpoint;
    request.settings.top_log_probs = top_log_probs;
    return response_format(request, model());
  }
  static json first_choice(const std::string& text) { return json::parse(text)["choices"][0]; }
};

TEST_F(ResponseFormatTest, AToolCallIsAMessagesOrADeltas) {
  AnswerPart part;
  part.text.tool_calls = {{"", "f", "{\"a\": 1}"}, {"functions.g:1", "g", "{}"}};
  part.first_call = 2;
  part.finish_reason = "tool_calls";
  const auto chat = format(Endpoint::kChat);
  const json delta = first_choice(chat->part(0, part))["delta"]["tool_calls"];
  EXPECT_EQ(delta[0]["index"], 2);
  EXPECT_EQ(delta[1]["index"], 3);
  EXPECT_EQ(delta[0]["function"], (json{{"name", "f"}, {"arguments", "{\"a\": 1}"}}));
  EXPECT_TRUE(delta[0]["id"].get<std::string>().starts_with("call_"));
  EXPECT_EQ(delta[1]["id"], "functions.g:1");  // the model's own

  const json choice = first_choice(chat->whole({part}, {}));
  EXPECT_TRUE(choice["message"]["content"].is_null());
  EXPECT_EQ(choice["message"]["tool_calls"][1]["type"], "function");
  EXPECT_EQ(choice["finish_reason"], "tool_calls");
}

TEST_F(ResponseFormatTest, ReasoningStandsBesideContent) {
  AnswerPart part;
  part.text.reasoning = "why";
  part.text.content = "\"because\"\n";
  const auto chat = format(Endpoint::kChat);
  EXPECT_EQ(first_choice(chat->part(0, part))["delta"],
            (json{{"reasoning_content", "why"}, {"content", "\"because\"\n"}}));
  EXPECT_EQ(first_choice(chat->whole({part}, {}))["message"]["reasoning_content"], "why");
}

TEST_F(ResponseFormatTest, ALogProbabilityHasBytesAndOfNoneIsANumberStill) {
  AnswerPart part;
  const int32_t once = model().tokenizer.encode("Once", false)[0];
  part.log_probs = {{once, {.chosen = -0.5f, .top = {{once, -0.5f}}}},
                    {once, {.chosen = -INFINITY, .top = {}}}};
  const json chat = first_choice(format(Endpoint::kChat, 1)->part(0, part))["logprobs"]["content"];
  EXPECT_EQ(chat[0]["token"], "Once");
  EXPECT_EQ(chat[0]["logprob"], -0.5);
  EXPECT_EQ(chat[0]["bytes"], (json{79, 110, 99, 101}));
  EXPECT_EQ(chat[0]["top_logprobs"][0]["token"], "Once");
  EXPECT_EQ(chat[1]["logprob"], -9999.0);  // JSON has no infinity

  part.first_offset = 7;
  const json completion =
      first_choice(format(Endpoint::kCompletions, 1)->part(0, part))["logprobs"];
  EXPECT_EQ(completion["text_offset"], (json{7, 11}));
  EXPECT_EQ(completion["top_logprobs"][0], (json{{"Once", -0.5}}));
}

}  // namespace
}  // namespace troupe::serve
