// The parts of a chat that need no ranks.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/chat_conversation.h"
#include "launcher/chat_report.h"
#include "launcher/chat_settings.h"
#include "launcher/nearest_name.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

TEST(EditDistance, CountsCharactersPutInLeftOutAndReplaced) {
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("same", "same"), 0);
}

TEST(DidYouMean, NamesTheNearestAndNothingWhereAllAreFar) {
  EXPECT_EQ(did_you_mean("/hlep", {"/history", "/help"}), "; did you mean /help?");
  EXPECT_EQ(did_you_mean("/qqqqq", {"/history", "/help"}), "");
  EXPECT_EQ(did_you_mean(std::string(1000, 'h'), {"/help"}), "");
}

TEST(ChatSettings, BeginAsTheConfigurationSaysAndGoToTheRequest) {
  Config config;
  config.data.temperature = 0.5;
  config.data.seed = 7;
  config.scheduler.max_new_tokens = 99;
  ChatSettings settings(config);
  settings.set("top_k", "40");
  settings.set("repetition_penalty", "1.25");
  settings.set("seed", "18446744073709551615");

  actors::Request request;
  settings.apply_to(request);

  EXPECT_EQ(request.temperature, 0.5F);
  EXPECT_EQ(request.top_k, 40);
  EXPECT_EQ(request.repetition_penalty, 1.25F);
  EXPECT_EQ(request.seed, 18446744073709551615U);
  EXPECT_EQ(request.max_new_tokens, 99);
}

TEST(ChatSettings, RefuseUnknownNamesAndValuesOutOfRange) {
  ChatSettings settings{Config()};

  EXPECT_EQ(error_of([&] { settings.set("temprature", "1"); }),
            "unknown setting \"temprature\"; did you mean temperature? (/set lists all)");
  EXPECT_EQ(error_of([&] { settings.set("top_p", "1.5"); }),
            "top_p: \"1.5\" is not a number from 0 to 1");
  for (const char* value : {"2.5", "-1", "", "four", "1e99", "nan", "7x"})
    EXPECT_EQ(error_of([&] { settings.set("top_k", value); }),
              fmt::format("top_k: \"{}\" is not an integer from 0 to 2147483647", value));
  EXPECT_EQ(settings.top_k, 0);
}

class ChatFile : public testing::Test {
 protected:
  std::string load_error(const std::string& content) {
    const std::string file = directory_.write("chat.json", content);
    const std::string error = error_of([&] { load_chat(file, conversation_, settings_); });
    EXPECT_TRUE(error.starts_with(file)) << error;
    return error;
  }

  model::TemporaryDirectory directory_;
  ChatConversation conversation_{.system = "before", .messages = {}, .parts = {}};
  ChatSettings settings_{Config()};
};

TEST_F(ChatFile, KeepsWhatWasSaidAndTheSettings) {
  const ChatConversation said{.system = "Be \"brief\".",
                              .messages = {{"user", "Grüße,\n\tzwei Zeilen"}, {"assistant", "Ja."}},
                              .raw = true,
                              .parts = {{"user", "Once"}, {"assistant", " upon"}}};
  ChatSettings settings{Config()};
  settings.set("temperature", "0.7");
  settings.set_seed("12345678901234567890");
  const auto file = directory_.path() / "chat.json";

  save_chat(file, said, settings);
  load_chat(file, conversation_, settings_);

  EXPECT_EQ(conversation_.system, said.system);
  EXPECT_EQ(conversation_.messages, said.messages);
  EXPECT_EQ(conversation_.parts, said.parts);
  EXPECT_TRUE(conversation_.raw);
  EXPECT_EQ(settings_.temperature, 0.7);
  EXPECT_EQ(settings_.seed, 12345678901234567890U);
}

TEST_F(ChatFile, ThatIsWrongSaysWhereAndChangesNothing) {
  settings_.set("top_k", "5");
  EXPECT_NE(load_error("Once upon").find("parse"), std::string::npos);
  EXPECT_NE(load_error("[]").find("expected an object"), std::string::npos);
  EXPECT_NE(load_error(R"({"model_type": "kimi"})").find("no conversation"), std::string::npos);
  EXPECT_NE(load_error(R"({"messages": [{"role": "user", "content": "a"}, {"role": "poet",
                           "content": "b"}]})")
                .find("messages[1]: role \"poet\"; expected user or assistant"),
            std::string::npos);
  EXPECT_NE(load_error(R"({"messages": [{"role": "user"}]})").find("\"content\""),
            std::string::npos);
  EXPECT_NE(load_error(R"({"settings": {"top_k": 3, "top_q": 1}})").find("top_q"),
            std::string::npos);

  EXPECT_EQ(conversation_.system, "before");
  EXPECT_EQ(settings_.top_k, 5);
}

TEST(ChatConversation, IsWhatTheTemplateReads) {
  const ChatConversation chat{
      .system = "Be kind.", .messages = {{"user", "Hi"}, {"assistant", "Hello"}}, .parts = {}};

  EXPECT_EQ(chat.template_messages().dump(),
            R"([{"role":"system","content":"Be kind."},{"role":"user","content":"Hi"},)"
            R"({"role":"assistant","content":"Hello"}])");
}

TEST(ExpertMap, DarkensWithTheShareOfALayerAndNamesTheBusiest) {
  const std::string map = expert_map({{}, {0, 1, 9, 2}});

  // Of 9 shades, rounded up: none, 1, 9 and 2 of the most, 9. The mean is 3.
  EXPECT_EQ(map, "layer   1 | .@:| expert 2 has 3.0 times the mean\n");
}

TEST(ExpertMap, PutsNeighboursTogetherWhereThereAreMany) {
  std::vector<int64_t> counts(256, 0);
  counts[4] = counts[7] = 1;  // both in the second of 64 groups of 4
  counts[255] = 1;

  EXPECT_EQ(expert_map({counts}),
            "layer   0 | @" + std::string(61, ' ') + "+| expert 4 has 85.3 times the mean\n");
}

TEST(EndingNote, SaysWhatCutAnAnswerShort) {
  ChatModel::Answer answer{.text = "", .completion = {}, .prompt_tokens = 90};
  answer.completion.tokens.resize(10);
  ChatSettings settings{Config()};
  const auto note = [&](actors::FinishReason reason, int64_t context) {
    answer.completion.reason = reason;
    return ending_note(answer, settings, context);
  };

  EXPECT_EQ(note(actors::FinishReason::kStop, 200), "");
  EXPECT_EQ(note(actors::FinishReason::kCancelled, 200), "(stopped)\n");
  EXPECT_NE(note(actors::FinishReason::kLength, 200).find("max_new_tokens"), std::string::npos);
  EXPECT_NE(note(actors::FinishReason::kLength, 100).find("context of 100"), std::string::npos);
}

}  // namespace
}  // namespace troupe::launcher
