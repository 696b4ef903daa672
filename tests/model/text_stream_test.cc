#include "model/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/model/files.h"

namespace troupe::model {
namespace {

using Ids = std::vector<int32_t>;
using Texts = std::vector<std::string>;

const Tokenizer& tiny_moe() {
  static const Tokenizer tokenizer(source_file("models/tiny-moe"));
  return tokenizer;
}

// A token for each byte of `text`, where the vocabulary has one; else the fewest bytes it has.
Ids smallest_tokens(const std::string& text) {
  Ids ids;
  for (const char c : text)
    for (const int32_t id : tiny_moe().encode(std::string(1, c), false)) ids.push_back(id);
  return ids;
}

std::string whole_text(TextStream& stream, const Ids& ids) {
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

// By definition: the text before the stop string that ends first; of those that end there the
// longest.
std::string cut_by_definition(const std::string& text, const Texts& stops) {
  for (size_t end = 0; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (text.substr(0, end).ends_with(stop)) longest = std::max(longest, stop.size());
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

TEST(TextStream, WithoutStopStringsGivesWhatDecodeGives) {
  const Ids ids = tiny_moe().encode("Zoë saw 3 naïve 🦊🦊 and “quotes”.", false);
  TextStream stream(tiny_moe());

  EXPECT_EQ(whole_text(stream, ids), tiny_moe().decode(ids));
  EXPECT_FALSE(stream.stopped());
}

TEST(TextStream, EndsBeforeAStopStringThatLiesAcrossTokens) {
  TextStream stream(tiny_moe(), {"END"});

  EXPECT_EQ(whole_text(stream, smallest_tokens("one END two")), "one ");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStream, EndsBeforeAStopStringInsideOneToken) {
  const Ids ids = tiny_moe().encode("Once upon a time", false);
  TextStream stream(tiny_moe(), {"po"});

  EXPECT_EQ(whole_text(stream, ids), "Once u");
}

TEST(TextStream, HoldsBackWhatCouldBecomeAStopStringAndGivesItOutOnceItCannot) {
  TextStream stream(tiny_moe(), {"aab"});
  std::string shown;
  Texts after;
  for (const int32_t id : smallest_tokens("aaac")) after.push_back(shown += stream.push(id));

  EXPECT_EQ(after, (Texts{"", "", "a", "aaac"}));
}

TEST(TextStream, GivesWhatItHeldBackWhenTheAnswerEnds) {
  TextStream stream(tiny_moe(), {"END"});
  std::string shown;
  for (const int32_t id : smallest_tokens("the EN")) shown += stream.push(id);

  EXPECT_EQ(shown, "the ");
  EXPECT_EQ(stream.finish(), "EN");
  EXPECT_FALSE(stream.stopped());
}

TEST(TextStream, OfSeveralStopStringsTheOneThatIsCompleteFirstEndsTheText) {
  TextStream early(tiny_moe(), {"long stop", "on"});
  EXPECT_EQ(whole_text(early, smallest_tokens("a long stop")), "a l");
  TextStream longest(tiny_moe(), {"op", "stop"});
  EXPECT_EQ(whole_text(longest, smallest_tokens("a stop")), "a ");
}

TEST(TextStream, AgreesWithTheDefinitionOnRandomTexts) {
  std::mt19937 random(5);
  const auto word = [&](size_t longest) {
    std::string text(1 + random() % longest, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 300; ++round) {
    const std::string text = word(40);
    Texts stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) stops.push_back(word(6));
    const std::string expected = cut_by_definition(text, stops);

    std::string shown;
    TextStream stream(tiny_moe(), stops);
    for (const int32_t id : round % 2 ? smallest_tokens(text) : tiny_moe().encode(text, false)) {
      shown += stream.push(id);
      ASSERT_TRUE(expected.starts_with(shown)) << text;
    }
    EXPECT_EQ(shown + stream.finish(), expected) << text;
  }
}

TEST(TextStream, NeverGivesHalfACharacter) {
  TextStream stream(tiny_moe(), {"🦊🦊"});
  const Ids ids = tiny_moe().encode("a 🦊é🐻", false);
  ASSERT_GT(ids.size(), 5);  // the vocabulary spells them in bytes
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = stream.push(id);
    EXPECT_NO_THROW(tiny_moe().encode(part));  // which takes nothing but UTF-8
    text += part;
  }
  EXPECT_EQ(text + stream.finish(), "a 🦊é🐻");
}

}  // namespace
}  // namespace troupe::model
