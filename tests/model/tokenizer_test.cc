// The vectors in tokenizer_vectors/ are what Hugging Face tokenizers itself makes of the texts
// there (tools/tokenizer_vectors/README.md).
#include "model/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tests/model/files.h"

namespace troupe::model {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

json vectors(const std::string& name) {
  return json::parse(read_file(source_file("tests/model/tokenizer_vectors/" + name)));
}

std::vector<std::string> corpus() { return vectors("corpus.json"); }

Tokenizer tiny_moe() { return Tokenizer(source_file("models/tiny-moe")); }

void expect_corpus_ids(const Tokenizer& tokenizer, const json& expected) {
  const std::vector<std::string> texts = corpus();
  ASSERT_EQ(texts.size(), expected["ids"].size());
  for (size_t i = 0; i < texts.size(); ++i)
    EXPECT_EQ(tokenizer.encode(texts[i], false), expected["ids"][i].get<Ids>()) << texts[i];
}

void expect_decodings(const Tokenizer& tokenizer, const json& expected) {
  for (const json& row : expected["decodings"]) {
    const Ids ids = row["ids"];
    EXPECT_EQ(tokenizer.decode(ids, true), row["text"].get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids, false), row["text_with_special"].get<std::string>());
  }
}

// A tokenizer of variants.json, written to a directory.
Tokenizer variant(const json& patch, const json& config = nullptr) {
  json file = vectors("variants.json")["base"];
  file.merge_patch(patch);
  const TemporaryDirectory directory;
  directory.write("tokenizer.json", file.dump());
  if (!config.is_null()) directory.write("tokenizer_config.json", config.dump());
  return Tokenizer(directory.path());
}

TEST(Tokenizer, GivesTheReferencesIdsWithTinyMoe) {
  expect_corpus_ids(tiny_moe(), vectors("tiny_moe.json"));
}

TEST(Tokenizer, GivesTheReferencesTextsWithTinyMoe) {
  expect_decodings(tiny_moe(), vectors("tiny_moe.json"));
}

TEST(Tokenizer, GivesTheReferencesIdsWithTheReachablePartOfDeepSeekV3) {
  const Tokenizer tokenizer(source_file("tests/model/tokenizer_vectors/deepseek_v3_reduced"));

  expect_corpus_ids(tokenizer, vectors("deepseek_v3.json"));
}

TEST(Tokenizer, GivesTheReferencesIdsWithTheReachablePartOfGptOss) {
  const Tokenizer tokenizer(source_file("tests/model/tokenizer_vectors/gpt_oss_reduced"));

  expect_corpus_ids(tokenizer, vectors("gpt_oss.json"));
}

TEST(Tokenizer, GivesTheReferencesIdsAndTextsWithDeepSeekV3) {
  const char* directory = std::getenv("TROUPE_DEEPSEEK_V3_TOKENIZER");
  if (directory == nullptr)
    GTEST_SKIP() << "set TROUPE_DEEPSEEK_V3_TOKENIZER to the directory of its tokenizer.json";
  const Tokenizer tokenizer{std::filesystem::path(directory)};

  expect_corpus_ids(tokenizer, vectors("deepseek_v3.json"));
  expect_decodings(tokenizer, vectors("deepseek_v3.json"));
  EXPECT_EQ(tokenizer.vocab_size(), 128815);
  EXPECT_EQ(tokenizer.encode(""), Ids{0});
}

TEST(Tokenizer, GivesTiktokensIdsWithATiktokenFile) {
  const Tokenizer tokenizer(source_file("tests/model/tokenizer_vectors/tiktoken_reduced"));
  const json expected = vectors("tiktoken.json");

  expect_corpus_ids(tokenizer, expected);
  ASSERT_GE(expected["texts"].size(), 20u);
  for (size_t i = 0; i < expected["texts"].size(); ++i) {
    const std::string text = expected["texts"][i];
    EXPECT_EQ(tokenizer.encode(text), expected["text_ids"][i].get<Ids>()) << text;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text), false), text);
  }
}

TEST(Tokenizer, NamesTheSpecialTokensBehindTheRanksOfATiktokenFile) {
  const Tokenizer tokenizer(source_file("tests/model/tokenizer_vectors/tiktoken_reduced"));
  const int32_t num_ranks = tokenizer.bos_token_id();  // the first of them

  EXPECT_EQ(tokenizer.vocab_size(), num_ranks + 256);
  EXPECT_EQ(tokenizer.token_bytes(num_ranks), "[BOS]");
  EXPECT_EQ(tokenizer.token_bytes(num_ranks + 5),
            "<|reserved_token_" + std::to_string(num_ranks + 5) + "|>");
  EXPECT_TRUE(tokenizer.is_special(num_ranks + 3));
  EXPECT_FALSE(tokenizer.is_special(num_ranks + 11));  // <|tool_calls_section_begin|>
}

TEST(Tokenizer, EncodesRunsBeyondTheReferencesLimitInParts) {
  const Tokenizer tokenizer(source_file("tests/model/tokenizer_vectors/tiktoken_reduced"));
  const std::string part(25'000, 'a');

  Ids twice = tokenizer.encode(part);
  const Ids once = twice;
  twice.insert(twice.end(), once.begin(), once.end());

  EXPECT_EQ(tokenizer.encode(part + part), twice);
}

TEST(Tokenizer, GivesTheReferencesIdsWithEveryVariantOfTheFormat) {
  const json file = vectors("variants.json");
  ASSERT_GE(file["variants"].size(), 20u);
  for (const json& row : file["variants"]) {
    SCOPED_TRACE(row["name"].get<std::string>());
    const Tokenizer tokenizer = variant(row["patch"]);
    for (size_t i = 0; i < row["texts"].size(); ++i) {
      const std::string text = row["texts"][i];
      EXPECT_EQ(tokenizer.encode(text, true), row["ids"][i].get<Ids>()) << text;
      EXPECT_EQ(tokenizer.encode(text, false), row["ids_without_special"][i].get<Ids>()) << text;
    }
  }
}

TEST(Tokenizer, GivesBackTheTextItEncoded) {
  const Tokenizer tokenizer = tiny_moe();

  for (const std::string& text : corpus())
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false), false), text);
}

TEST(Tokenizer, GivesBackEveryCharacterOfUnicode) {
  const Tokenizer tokenizer = tiny_moe();
  std::string text;
  for (uint32_t c = 0; c < 0x110000; c += 1 + c / 0x4000) {
    if (c >= 0xd800 && c < 0xe000) continue;
    if (c < 0x80) {
      text += static_cast<char>(c);
    } else {
      const int bytes = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
      text += static_cast<char>((0xf00 >> bytes) | (c >> 6 * (bytes - 1)));
      for (int shift = 6 * (bytes - 2); shift >= 0; shift -= 6)
        text += static_cast<char>(0x80 | ((c >> shift) & 0x3f));
    }
  }

  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text);
}

TEST(Tokenizer, LlamaTokenizerFastPutsBosInFrontUnlessAskedNotTo) {
  const Tokenizer tokenizer = tiny_moe();

  const Ids with = tokenizer.encode("Hi"), without = tokenizer.encode("Hi", false);

  EXPECT_EQ(tokenizer.bos_token_id(), 0);
  EXPECT_EQ(with.front(), 0);
  EXPECT_EQ(Ids(with.begin() + 1, with.end()), without);
  EXPECT_EQ(tokenizer.encode(""), Ids{0});
}

// Two templates of which at most one may act.
const json kAdded = {{{"id", 281},
                      {"content", "<bos>"},
                      {"single_word", false},
                      {"lstrip", false},
                      {"rstrip", false},
                      {"normalized", false},
                      {"special", true}}};
const json kTemplate = {
    {"type", "TemplateProcessing"},
    {"single", json::parse(R"([{"SpecialToken": {"id": "<bos>", "type_id": 0}},
                                                   {"Sequence": {"id": "A", "type_id": 0}}])")},
    {"pair", json::array()},
    {"special_tokens", {{"<bos>", {{"id", "<bos>"}, {"ids", {281}}, {"tokens", {"<bos>"}}}}}}};
const json kWithTemplate = {{"added_tokens", kAdded}, {"post_processor", kTemplate}};

TEST(Tokenizer, AddsBosOnceWhenTheTemplateAndTheConfigBothAskForIt) {
  for (const char* name : {"LlamaTokenizerFast", "PreTrainedTokenizerFast"}) {
    const Tokenizer tokenizer =
        variant(kWithTemplate,
                {{"tokenizer_class", name}, {"add_bos_token", true}, {"bos_token", "<bos>"}});

    EXPECT_EQ(tokenizer.encode("a").size(), 2u) << name;
    EXPECT_EQ(tokenizer.encode("a").front(), 281) << name;
  }
}

TEST(Tokenizer, LlamaTokenizerFastReplacesTheTemplateOfTheFile) {
  const Tokenizer tokenizer = variant(kWithTemplate, {{"tokenizer_class", "LlamaTokenizerFast"},
                                                      {"add_bos_token", false},
                                                      {"bos_token", "<bos>"}});

  EXPECT_EQ(tokenizer.encode("a"), tokenizer.encode("a", false));
  EXPECT_EQ(tokenizer.bos_token_id(), 281);
}

TEST(Tokenizer, LlamaTokenizerFastAddsEosOnlyWhenAsked) {
  const Tokenizer tokenizer =
      variant({{"added_tokens", kAdded}}, {{"tokenizer_class", "LlamaTokenizerFast"},
                                           {"bos_token", "<bos>"},
                                           {"add_eos_token", true},
                                           {"eos_token", {{"content", "<bos>"}}}});

  EXPECT_EQ(tokenizer.encode(""), (Ids{281, 281}));
}

TEST(Tokenizer, OtherClassesFollowTheTemplateOfTheFile) {
  const Tokenizer tokenizer = variant(
      kWithTemplate, {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"add_bos_token", false}});

  EXPECT_EQ(tokenizer.encode("").front(), 281);
  EXPECT_EQ(tokenizer.bos_token_id(), -1);
}

TEST(Tokenizer, NamesTheByteThatIsNotUtf8) {
  const Tokenizer tokenizer = tiny_moe();
  // A lone continuation, overlong forms, a surrogate, past U+10FFFF, never a byte, cut short.
  for (const char* bad : {"\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\x80", "\xf0\x8f\xbf\xbf",
                          "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff", "\xe4\xb8", "\xc3"}) {
    const std::string error = user_error([&] { tokenizer.encode("中" + std::string(bad)); });
    EXPECT_CONTAINS(error, "byte 3");
  }
}

TEST(Tokenizer, EncodesAMegabyteOfOneLetterAsTheVocabularysLongestRuns) {
  const std::string text(1 << 20, 'a');
  const Tokenizer tokenizer =
      variant({{"model", {{"vocab", {{"aa", 290}, {"aaaa", 291}}}, {"merges", {"a a", "aa aa"}}}}});

  EXPECT_EQ(tokenizer.encode(text), Ids(1 << 18, 291));
}

TEST(Tokenizer, EncodesLongRunsOfEachKindOfCharacter) {
  const Tokenizer tokenizer(source_file("tests/model/tokenizer_vectors/deepseek_v3_reduced"));
  for (const char* unit :
       {" ", "\n", "\t", "1", "!", "\u3000", "中", "e\u0301", "a ", "\0x", " \n"}) {
    std::string text;
    while (text.size() < 1 << 18) text += unit[0] == 0 ? std::string("\0x", 2) : unit;

    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text);
  }
}

TEST(Tokenizer, GivesUpOnAPatternThatBacktracksWithoutEnd) {
  const Tokenizer tokenizer = variant(json::parse(
      R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(a|aa)+[bc]"}, "behavior": "Isolated",
             "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}})"));

  EXPECT_EQ(tokenizer.decode(tokenizer.encode("aaab")), "aaab");
  EXPECT_CONTAINS(user_error([&] { tokenizer.encode(std::string(200, 'a')); }), "split pattern");
}

TEST(Tokenizer, RefusesBytesThatTheVocabularyLacks) {
  const Tokenizer tokenizer = variant(
      {{"model", {{"vocab", {{"x", nullptr}, {"xy", nullptr}}}, {"merges", json::array()}}}});

  EXPECT_EQ(tokenizer.decode(tokenizer.encode("abc")), "abc");
  EXPECT_CONTAINS(user_error([&] { tokenizer.encode("abxc"); }), "0x78");
}

TEST(Tokenizer, KnowsTheBytesAndTheKindOfEachToken) {
  const Tokenizer tokenizer = tiny_moe();

  EXPECT_EQ(tokenizer.vocab_size(), 4096);
  EXPECT_EQ(tokenizer.token_bytes(3), "!");
  EXPECT_EQ(tokenizer.token_bytes(tokenizer.encode(" ", false).at(0)), " ");
  EXPECT_EQ(tokenizer.token_bytes(4094), "<｜User｜>");
  for (const int32_t id : {-1, 4096, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(tokenizer.token_bytes(id), "");
    EXPECT_FALSE(tokenizer.is_special(id));
  }
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(4094));
}

TEST(StreamDecoder, GivesWholeCharactersAsSoonAsTheyAreComplete) {
  const Tokenizer tokenizer = tiny_moe();
  StreamDecoder stream(tokenizer);
  std::string text;
  for (const int32_t id : tokenizer.encode("é😀a", false)) {
    const std::string part = stream.push(id);
    EXPECT_TRUE(part.empty() || part == "é" || part == "😀" || part == "a") << part;
    text += part;
  }

  EXPECT_EQ(text, "é😀a");
  EXPECT_EQ(stream.finish(), "");
}

// The token of one byte.
int32_t byte_token(const Tokenizer& tokenizer, char byte) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (tokenizer.token_bytes(id) == std::string_view(&byte, 1)) return id;
  throw std::runtime_error("no such token");
}

TEST(StreamDecoder, ReplacesWhatCanNeverBecomeValidAtOnce) {
  const Tokenizer tokenizer = tiny_moe();
  const auto push = [&](StreamDecoder& stream, char byte) {
    return stream.push(byte_token(tokenizer, byte));
  };
  StreamDecoder stream(tokenizer);

  EXPECT_EQ(push(stream, '\xff'), "\ufffd");
  EXPECT_EQ(push(stream, '\xe4'), "");
  EXPECT_EQ(push(stream, '\xb8'), "");
  EXPECT_EQ(push(stream, 'a'), "\ufffda");
  EXPECT_EQ(push(stream, '\xed'), "");
  EXPECT_EQ(push(stream, '\xa0'), "\ufffd\ufffd");
  EXPECT_EQ(push(stream, '\xf0'), "");
  EXPECT_EQ(push(stream, '\x9f'), "");
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, GivesWhatDecodingAllAtOnceGives) {
  const Tokenizer tokenizer = tiny_moe();
  std::mt19937 random(1);
  for (int round = 0; round < 400; ++round) {
    // Small ids are mostly single bytes and special tokens: few of these texts are valid UTF-8.
    Ids ids(random() % 40);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % (round % 2 == 0 ? 300 : 4200));
    for (const bool skip_special : {false, true}) {
      StreamDecoder stream(tokenizer, skip_special);
      std::string text;
      for (const int32_t id : ids) text += stream.push(id);
      text += stream.finish();
      EXPECT_EQ(text, tokenizer.decode(ids, skip_special));
    }
  }
}

}  // namespace
}  // namespace troupe::model
