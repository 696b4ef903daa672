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
               const std::vector<std::string>& stops = {}) {
  const ReplyFormat format = ReplyFormat::of(tokenizer);
  ReplyStream stream(tokenizer, format, stops, in_reasoning);
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

}  // namespace
}  // namespace troupe::serve
