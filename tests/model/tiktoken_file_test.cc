#include "model/tiktoken_file.h"

#include "model/text_chunks.h"
#include "tests/model/files.h"

namespace troupe::model {
namespace {

const char* const kConfig = R"({"tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]",
  "added_tokens_decoder": {"3": {"content": "[BOS]", "lstrip": false, "normalized": false,
                                 "rstrip": false, "single_word": false, "special": true}}})";
const char* const kRanks = "YQ== 0\nYg== 1\nYWI= 2\n";  // a, b, ab

std::string error_of(const std::string& ranks, const std::string& config = kConfig) {
  const TemporaryDirectory directory;
  directory.write("tiktoken.model", ranks);
  directory.write("tokenizer_config.json", config);
  return user_error([&] { read_tiktoken_file(directory.path()); });
}

TEST(TiktokenFile, ReadsRanksMergesAndSpecialTokens) {
  const TemporaryDirectory directory;
  directory.write("tiktoken.model", kRanks);
  directory.write("tokenizer_config.json", kConfig);

  const TokenizerFile file = read_tiktoken_file(directory.path());

  ASSERT_EQ(file.vocabulary.size(), 3u);
  EXPECT_EQ(file.vocabulary[2], (std::pair<std::string, int32_t>("ab", 2)));
  ASSERT_EQ(file.merges.size(), 1u);
  EXPECT_EQ(file.merges[0].left, 0);
  EXPECT_EQ(file.merges[0].right, 1);
  EXPECT_EQ(file.merges[0].result, 2);
  ASSERT_EQ(file.added_tokens.size(), 256u);
  EXPECT_EQ(file.added_tokens[0].content, "[BOS]");
  EXPECT_EQ(file.added_tokens[1].content, "<|reserved_token_4|>");
  EXPECT_EQ(file.bos_token_id, 3);
}

TEST(TiktokenFile, NamesTheLineThatIsWrong) {
  EXPECT_CONTAINS(error_of("YQ== 0\nYg==\n"), "line 2: must be a token in base64 and its rank");
  EXPECT_CONTAINS(error_of("YQ== 0\nYg== 2\n"), "line 2: ranks must count from 0");
  EXPECT_CONTAINS(error_of("YQ== 0\nYg== 1x\n"), "line 2: ranks must count from 0");
  EXPECT_CONTAINS(error_of("YQ== 0\nY*== 1\n"), "line 2: the token is not base64");
  EXPECT_CONTAINS(error_of("YQ== 0\nYQ 1\n"), "line 2: the token is not base64");
  EXPECT_CONTAINS(error_of("YQ== 0\nYQ== 1\n"), "rank 1: the token has another rank, too");
  EXPECT_CONTAINS(error_of(std::string(5000, 'A') + " 0\n"), "line 1: the token is too long");
}

TEST(TiktokenFile, RefusesAnotherClassAndTokensInWrongPlaces) {
  EXPECT_CONTAINS(error_of(kRanks, R"({"tokenizer_class": "GPT2Tokenizer"})"),
                  "'GPT2Tokenizer' is not supported; supported: TikTokenTokenizer");
  const std::string entry =
      R"({"content": "x", "lstrip": false, "normalized": false, "rstrip": false,
          "single_word": false, "special": true})";
  const auto decoder = [&](const std::string& id) {
    return R"({"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": {")" + id +
           "\": " + entry + "}}";
  };
  EXPECT_CONTAINS(error_of(kRanks, decoder("2")), "added_tokens_decoder.2 is no id from 3 to 258");
  EXPECT_CONTAINS(error_of(kRanks, decoder("259")), "is no id from 3 to 258");
  EXPECT_CONTAINS(error_of(kRanks, decoder("03")), "is no id from 3 to 258");
  EXPECT_CONTAINS(
      error_of(kRanks, R"({"tokenizer_class": "TikTokenTokenizer", "bos_token": "nobody"})"),
      "bos_token is 'nobody', which is no token");
}

std::vector<std::string> chunks(const std::string& text, size_t max_characters, size_t max_run) {
  std::vector<std::string> found;
  for_each_chunk(text, max_characters, max_run,
                 [&](std::string_view chunk) { found.emplace_back(chunk); });
  return found;
}

using Chunks = std::vector<std::string>;

TEST(TextChunks, AreCutWhereARunIsTooLong) {
  EXPECT_EQ(chunks("abcdefg hi", 100, 3), (Chunks{"abc", "def", "g hi"}));
  EXPECT_EQ(chunks("ab    cd", 100, 3), (Chunks{"ab   ", " cd"}));
  EXPECT_EQ(chunks("abc def ghi", 100, 3), (Chunks{"abc def ghi"}));
  EXPECT_EQ(chunks("", 100, 3), Chunks{});
}

TEST(TextChunks, CountCharactersAndNotBytes) {
  EXPECT_EQ(chunks("äöüß", 100, 3), (Chunks{"äöü", "ß"}));
  EXPECT_EQ(chunks("a\u00a0\u3000\x1f"
                   "b",
                   100, 2),
            (Chunks{"a\u00a0\u3000",
                    "\x1f"
                    "b"}));
}

TEST(TextChunks, AreNotLongerThanTheTextMayBe) {
  EXPECT_EQ(chunks("a b c d", 3, 100), (Chunks{"a b", " c ", "d"}));
  // Runs are counted anew in each.
  EXPECT_EQ(chunks("abcdefg", 3, 2), (Chunks{"ab", "c", "de", "f", "g"}));
}

}  // namespace
}  // namespace troupe::model
