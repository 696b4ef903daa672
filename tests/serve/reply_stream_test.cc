#include "serve/reply_stream.h"

#include <gtest/gtest.h>

#include "tests/model/files.h"

namespace troupe::serve {
namespace {

using Ids = std::vector<int32_t>;

// A byte-level vocabulary with the marks of a family as added tokens.
model::Tokenizer tokenizer_with(const std::vector<std::string>& marks, bool special) {
  using nlohmann::json;
  json file = json::parse(
      model::read_file(model::source_file("tests/model/tokenizer_vectors/variants.json")))["base"];
  int64_t next = 0;
  for (const auto& [token, id] : file["model"]["vocab"].items())
    next = std::max(next, id.get<int64_t>() + 1);
  for (const json& added : file["added_tokens"])
    next = std::max(next, added["id"].get<int64_t>() + 1);
  for (const std::string& mark : marks)
    file["added_tokens"].push_back({{"id", next++},
                                    {"content", mark},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", special}});
  const model::TemporaryDirectory directory;
  directory.write("tokenizer.json", file.dump());
  return model::Tokenizer(directory.path());
}

ReplyPart read(const model::Tokenizer& tokenizer, const std::string& text, bool in_reasoning,
               const std::vector<std::string>& stops = {}, bool with_tools = false) {
  const ReplyFormat format = ReplyFormat::of(tokenizer);
  ReplyStream stream(tokenizer, format, stops,
                     {.in_reasoning = in_reasoning, .with_tools = with_tools});
  ReplyPart part;
  for (const int32_t id : tokenizer.encode(text, false)) stream.push(id, part);
  stream.finish(part);
  return part;
}

TEST(ReplyStream, WithoutMarksInTheVocabularyAllIsContent) {
  const model::Tokenizer plain = tokenizer_with({}, false);
  EXPECT_EQ(ReplyFormat::of(plain).kind, ReplyFormat::Kind::kPlain);
  EXPECT_EQ(read(plain, "abc", false).content, "abc");
}

TEST(ReplyStream, WhatIsThoughtIsReasoning) {
  const model::Tokenizer r1 = tokenizer_with({"<think>", "</think>"}, false);
  const ReplyPart own = read(r1, "<think>why</think>because", false);
  EXPECT_EQ(own.reasoning, "why");
  EXPECT_EQ(own.content, "because");
  const ReplyPart opened = read(r1, "why</think>because</think>", true);  // by the template
  EXPECT_EQ(opened.reasoning, "why");
  EXPECT_EQ(opened.content, "because</think>");
  EXPECT_EQ(read(r1, "no thought <think>", false).content, "no thought <think>");
  EXPECT_EQ(read(r1, "cut sho", true).reasoning, "cut sho");
}

TEST(ReplyStream, OfHarmonysChannelsTheFinalOneIsContent) {
  const model::Tokenizer harmony =
      tokenizer_with({"<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"}, true);
  const ReplyPart part =
      read(harmony,
           "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>commentary"
           "<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>because<|return|>",
           false);
  EXPECT_EQ(part.reasoning, "whyso");
  EXPECT_EQ(part.content, "because");
  EXPECT_EQ(read(harmony, "plain", false).content, "plain");
}

TEST(ReplyStream, AStopStringEndsWhateverIsBeingSaid) {
  const model::Tokenizer r1 = tokenizer_with({"<think>", "</think>"}, false);
  const ReplyPart thought = read(r1, "<think>one two</think>three", false, {"tw"});
  EXPECT_EQ(thought.reasoning, "one ");
  EXPECT_EQ(thought.content, "");
  // It does not reach over a mark: what was held back belongs to its side.
  const ReplyPart across = read(r1, "<think>ab</think>cd", false, {"abcd"});
  EXPECT_EQ(across.reasoning, "ab");
  EXPECT_EQ(across.content, "cd");
}

using Strings = std::vector<std::string>;

// The marks in each of these tests, and the way calls are written, are those of the chat templates
// in tests/model/chat_templates.
void expect_calls(const Strings& marks, bool special, const std::string& text, const Strings& names,
                  const Strings& arguments, const std::string& content) {
  const model::Tokenizer tokenizer = tokenizer_with(marks, special);
  ASSERT_TRUE(ReplyFormat::of(tokenizer).knows_tools());
  const ReplyPart part = read(tokenizer, text, false, {}, true);
  Strings found_names, found_arguments;
  for (const ToolCall& call : part.tool_calls) {
    found_names.push_back(call.name);
    found_arguments.push_back(call.arguments);
  }
  EXPECT_EQ(found_names, names);
  EXPECT_EQ(found_arguments, arguments);
  EXPECT_EQ(part.content, content);
  EXPECT_TRUE(read(tokenizer, text, false).tool_calls.empty());  // none were offered
}

const Strings kDeepSeekMarks = {"<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
                                "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"};

TEST(ReplyStream, ReadsTheToolCallsOfDeepSeekV3) {
  expect_calls(kDeepSeekMarks, false,
               "ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<"
               "｜tool▁sep｜>f\n```json\n"
               "{\"a\": "
               "1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<"
               "｜tool▁sep｜>g\n"
               "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
               {"f", "g"}, {"{\"a\": 1}", "{}"}, "ok\n");
}

TEST(ReplyStream, ReadsTheToolCallsOfDeepSeekV31) {
  expect_calls(kDeepSeekMarks, false,
               "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}"
               "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
               {"f"}, {"{\"a\": 1}"}, "");
}

TEST(ReplyStream, ReadsTheToolCallsOfKimi) {
  expect_calls({"<|tool_calls_section_begin|>", "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"},
               false,
               "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
               "<|tool_call_argument_begin|>{\"a\": "
               "1}<|tool_call_end|><|tool_calls_section_end|>",
               {"f"}, {"{\"a\": 1}"}, "");
}

TEST(ReplyStream, ReadsTheToolCallsOfQwenAndShowsWhatIsNone) {
  const Strings marks = {"<tool_call>", "</tool_call>"};
  expect_calls(marks, false,
               "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 2, "
               "\"a\": 1}}\n</tool_call>",
               {"f"}, {"{\"b\":2,\"a\":1}"}, "");
  expect_calls(marks, false, "<tool_call>f(1)</tool_call>", {}, {}, "f(1)");
  expect_calls(marks, false, "a<tool_call>{\"name\": \"f\"", {}, {},
               "a{\"name\": \"f\"");  // cut
}

TEST(ReplyStream, ReadsTheToolCallsOfHarmony) {
  expect_calls({"<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|constrain|>"},
               true,
               "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|"
               "channel|>commentary "
               "to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>",
               {"f"}, {"{\"a\": 1}"}, "");
}

}  // namespace
}  // namespace troupe::serve
