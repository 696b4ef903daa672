// Files that are damaged, hostile, or ask for what is not implemented.
#include "model/tokenizer_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "model/split_pattern.h"
#include "model/tokenizer.h"
#include "tests/model/files.h"

namespace troupe::model {
namespace {

using nlohmann::json;

json base_file() {
  return json::parse(read_file(source_file("tests/model/tokenizer_vectors/variants.json")))["base"];
}

std::string error_of_text(const std::string& tokenizer, const std::string& config = "{}") {
  const TemporaryDirectory directory;
  directory.write("tokenizer.json", tokenizer);
  directory.write("tokenizer_config.json", config);
  return user_error([&] { Tokenizer{directory.path()}; });
}

std::string error_of(const json& patch) {
  json file = base_file();
  file.merge_patch(patch);
  return error_of_text(file.dump());
}

std::string error_of_config(const json& config) {
  return error_of_text(base_file().dump(), config.dump());
}

json split(const json& fields) {
  json step = {{"type", "Split"},
               {"pattern", {{"Regex", "a"}}},
               {"behavior", "Isolated"},
               {"invert", false}};
  step.merge_patch(fields);
  const json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  return {{"pre_tokenizer",
           {{"type", "Sequence"}, {"pretokenizers", json::array({step, byte_level})}}}};
}

json added(const json& fields, int32_t id = 281) {
  json token = {{"id", id},        {"content", "<x>"},    {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", false}};
  token.merge_patch(fields);
  return {{"added_tokens", json::array({token})}};
}

TEST(TokenizerFile, NamesTheKeyOfWhatIsNotImplemented) {
  const std::pair<json, const char*> cases[] = {
      {{{"normalizer", {{"type", "NFC"}}}}, "normalizer.type"},
      {{{"normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}}}},
       "normalizer.normalizers"},
      {{{"truncation", {{"max_length", 5}}}}, "truncation"},
      {{{"padding", {{"strategy", "BatchLongest"}}}}, "padding"},
      {{{"version", "2.0"}}, "version"},
      {{{"surprise", 1}}, "surprise"},
      {{{"decoder", {{"type", "Metaspace"}}}}, "decoder.type"},
      {{{"pre_tokenizer", {{"type", "Metaspace"}}}}, "pre_tokenizer.type 'Metaspace'"},
      {{{"pre_tokenizer", {{"pretokenizers", json::array()}}}}, "pre_tokenizer must end"},
      {{{"post_processor", {{"type", "BertProcessing"}}}}, "post_processor.type"},
      {{{"model", {{"type", "Unigram"}}}}, "model.type"},
      {{{"model", {{"dropout", 0.1}}}}, "model.dropout"},
      {{{"model", {{"byte_fallback", true}}}}, "model.byte_fallback"},
      {{{"model", {{"end_of_word_suffix", "</w>"}}}}, "model.end_of_word_suffix"},
      {{{"model", {{"continuing_subword_prefix", "##"}}}}, "model.continuing_subword_prefix"},
      {split({{"behavior", "MergedWithNext"}}), "pre_tokenizer.pretokenizers[0].behavior"},
      {split({{"pattern", {{"Regex", "^a"}}}}), "pre_tokenizer.pretokenizers[0].pattern"},
      {split({{"pattern", {{"Regex", "(a"}}}}), "pre_tokenizer.pretokenizers[0].pattern"},
      {split({{"pattern", {{"Regex", nullptr}, {"String", ""}}}}),
       "pre_tokenizer.pretokenizers[0].pattern"},
  };
  for (const auto& [patch, key] : cases) {
    const std::string error = error_of(patch);
    EXPECT_CONTAINS(error, key);
    EXPECT_CONTAINS(error, "tokenizer.json: ");
  }
}

TEST(TokenizerFile, NamesTheKeyOfWhatIsMalformed) {
  const std::pair<json, const char*> cases[] = {
      {{{"model", {{"vocab", {{"a", -1}}}}}}, "model.vocab.a"},
      {{{"model", {{"vocab", {{"a", 16777217}}}}}}, "model.vocab.a"},
      {{{"model", {{"vocab", {{"a", 1e300}}}}}}, "model.vocab.a"},
      {{{"model", {{"vocab", {{"a", "1"}}}}}}, "model.vocab.a"},
      {{{"model", {{"vocab", {{"new", 7}}}}}}, "has id 7"},
      {{{"model", {{"vocab", 3}}}}, "model.vocab"},
      {{{"model", {{"vocab", nullptr}}}}, "model.vocab"},
      {{{"model", {{"merges", nullptr}}}}, "model.merges"},
      {json::parse(R"({"model": {"merges": ["a b", "a q"]}})"), "model.merges[1] needs 'aq'"},
      {json::parse(R"({"model": {"merges": ["a"]}})"), "model.merges[0]"},
      {json::parse(R"({"model": {"merges": ["a b c"]}})"), "model.merges[0]"},
      {json::parse(R"({"model": {"merges": [["a", "b", "c"]]}})"), "model.merges[0]"},
      {json::parse(R"({"model": {"merges": [["a", 1]]}})"), "model.merges[0]"},
      {{{"model", {{"ignore_merges", "yes"}}}}, "model.ignore_merges"},
      {{{"model", 1}}, "model"},
      {{{"model", nullptr}}, "model"},
      {{{"added_tokens", 1}}, "added_tokens"},
      {{{"added_tokens", json::array({1})}}, "added_tokens[0] must"},
      {added({{"id", -1}}), "added_tokens[0].id"},
      {added({{"id", 300}}), "added_tokens[0].id"},
      {added({{"content", "a"}}), "added_tokens[0].id"},
      {added({{"content", ""}}), "added_tokens[0].content"},
      {added({{"content", std::string(2000, 'x')}}), "added_tokens[0].content"},
      {added({{"special", nullptr}}), "added_tokens[0].special"},
      {added({{"lstrip", 1}}), "added_tokens[0].lstrip"},
      {split({{"invert", nullptr}}), "pre_tokenizer.pretokenizers[0].invert"},
      {split({{"pattern", "a"}}), "pre_tokenizer.pretokenizers[0].pattern"},
  };
  for (const auto& [patch, key] : cases) EXPECT_CONTAINS(error_of(patch), key);
}

TEST(TokenizerFile, ChecksTheTemplateOfSpecialTokens) {
  const auto file = [](const char* single, const char* special_tokens) -> json {
    json patch = added(json::object());
    patch["post_processor"] = {{"type", "TemplateProcessing"},
                               {"single", json::parse(single)},
                               {"pair", json::array()},
                               {"special_tokens", json::parse(special_tokens)}};
    return patch;
  };
  const char* sequence = R"([{"Sequence": {"id": "A", "type_id": 0}}])";
  const char* token = R"([{"SpecialToken": {"id": "<x>", "type_id": 0}},
                          {"Sequence": {"id": "A", "type_id": 0}}])";

  json twice = file(sequence, "{}");
  const json processor = twice["post_processor"];
  twice["post_processor"] = {{"type", "Sequence"},
                             {"processors", json::array({processor, processor})}};
  EXPECT_CONTAINS(error_of(twice), "post_processor.processors[1].type");

  EXPECT_CONTAINS(error_of(file("[]", "{}")), "post_processor.single");
  EXPECT_CONTAINS(error_of(file(R"([{"Sequence": {"id": "B"}}])", "{}")), "Sequence.id");
  EXPECT_CONTAINS(error_of(file(token, "{}")), "post_processor.special_tokens.<x>");
  EXPECT_CONTAINS(error_of(file(token, R"({"<x>": {"id": "<x>", "ids": [999]}})")), "999");
  EXPECT_CONTAINS(
      error_of(file(sequence, "{}")
                   .patch(json::parse(
                       R"([{"op": "add", "path": "/post_processor/extra", "value": 1}])"))),
      "post_processor.extra");
}

// Bytes it has no tokens for are an error when a text holds them.
const char kSmallFile[] = R"({"version": "1.0", "normalizer": null,
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "[^\\s\\p{L}]+|\\s+(?!\\S)|a{1,2}"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
  "decoder": {"type": "ByteLevel"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {"<x>": {"id": "<x>", "ids": [4], "tokens": ["<x>"]}}},
  "added_tokens": [{"id": 4, "content": "<x>", "single_word": false, "lstrip": false,
    "rstrip": false, "normalized": false, "special": true}],
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3},
    "merges": ["a b"]}})";

TEST(TokenizerFile, LoadsTheSmallFile) {
  const TemporaryDirectory directory;
  directory.write("tokenizer.json", kSmallFile);

  EXPECT_EQ(Tokenizer{directory.path()}.encode("bab<x> "),
            (std::vector<int32_t>{4, 1, 0, 1, 4, 3}));
}

TEST(TokenizerFile, RefusesTwoTokensWithOneId) {
  // The added token is number 2, and so is one of a vocabulary with a gap.
  const std::string error = error_of_text(R"({"decoder": {"type": "ByteLevel"},
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
      "model": {"type": "BPE", "vocab": {"a": 0, "b": 2}, "merges": []},
      "added_tokens": [{"id": 2, "content": "c", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": false}]})");

  EXPECT_CONTAINS(error, "added_tokens[0].id");
}

TEST(TokenizerFile, ReportsAnyTruncation) {
  const std::string whole = base_file().dump();
  for (size_t length = 1; length < whole.size(); length += 97)
    EXPECT_CONTAINS(error_of_text(whole.substr(0, length)), "not valid JSON");
}

TEST(TokenizerFile, AnyDamagedByteLoadsOrIsAUserError) {
  const std::string whole = kSmallFile;
  std::mt19937 random(7);
  int num_refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string damaged = whole;
    for (int i = 0; i < 2; ++i) {
      const char* replacements = "\"[]{},:0-9etn\\\xff a";
      damaged[random() % whole.size()] = replacements[random() % strlen(replacements)];
    }
    const TemporaryDirectory directory;
    directory.write("tokenizer.json", damaged);
    try {
      Tokenizer{directory.path()}.encode("ab<x>a b");
    } catch (const UserError&) {
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 100);
}

TEST(TokenizerFile, ReportsDeepNestingAndHugeLists) {
  EXPECT_CONTAINS(error_of_text(std::string(1 << 20, '[')), "nested");
  EXPECT_CONTAINS(error_of_text(R"({"pre_tokenizer":)" + std::string(1 << 20, '[')), "nested");

  std::string many = "[0";
  for (int i = 0; i < 1 << 23; ++i) many += ",0";
  EXPECT_CONTAINS(error_of_text(many + "]"), "values");
}

TEST(TokenizerFile, ReportsTooManySplits) {
  json file = base_file();
  json steps = json::array();
  for (int i = 0; i < 20; ++i) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};

  EXPECT_CONTAINS(error_of_text(file.dump()), "pre_tokenizer.pretokenizers[16]");
}

TEST(TokenizerFile, NamesTheFileThatIsNotThere) {
  EXPECT_CONTAINS(user_error([] { Tokenizer{"/nonexistent"}; }), "/nonexistent/tokenizer.json");
}

TEST(TokenizerFile, NamesTheKeyOfTokenizerConfig) {
  const std::pair<json, const char*> cases[] = {
      {{{"tokenizer_class", "LlamaTokenizerFast"}}, "bos_token is missing"},
      {{{"tokenizer_class", "LlamaTokenizerFast"},
        {"add_bos_token", false},
        {"add_eos_token", true}},
       "eos_token is missing"},
      {{{"add_bos_token", true}}, "bos_token is missing"},
      {{{"bos_token", "<s>"}}, "bos_token is '<s>'"},
      {{{"bos_token", {{"content", 1}}}}, "bos_token.content"},
      {{{"bos_token", 1}}, "bos_token"},
      {{{"tokenizer_class", 1}}, "tokenizer_class"},
      {{{"add_prefix_space", true}}, "add_prefix_space"},
      {{{"split_special_tokens", true}}, "split_special_tokens"},
      {json::array(), "object"},
  };
  for (const auto& [config, key] : cases) {
    const std::string error = error_of_config(config);
    EXPECT_CONTAINS(error, key);
    EXPECT_CONTAINS(error, "tokenizer_config.json");
  }
}

TEST(SplitPattern, RefusesWhatPcre2WouldReadDifferently) {
  for (const char* pattern : {"^a",
                              "\\ba",
                              "\\h",
                              "\\R",
                              "\\x80",
                              "\\xg0",
                              "\\u12",
                              "\\x{110000}",
                              "\\x{d800}",
                              "\\p{Greek}",
                              "\\p{^L}",
                              "\\pL",
                              "[^\\S]",
                              "[\\P{L}]",
                              "[a[b]]",
                              "[[:alpha:]]",
                              "[a&&b]",
                              "[^a&&[^b]]",
                              "[a&&[^b&&[^c]]]",
                              "[a&&[^b]c]",
                              "[]a]",
                              "[a",
                              "[a-\\s]",
                              "a{,3}",
                              "a{1,2}+",
                              "a**",
                              "*a",
                              "(?i)a",
                              "(?i:ss)",
                              "(?i:[a-z])",
                              "(?<n>a)",
                              "(*UTF)a",
                              "\\1",
                              "\\",
                              "\\w",
                              "a{2}?+"})
    EXPECT_THROW(split_pattern_to_pcre2(pattern), std::invalid_argument) << pattern;
}

}  // namespace
}  // namespace troupe::model
