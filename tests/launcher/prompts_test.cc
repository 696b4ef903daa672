#include "launcher/prompts.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "tests/model/files.h"

namespace troupe::launcher {
namespace {

std::filesystem::path write_file(const std::string& text) {
  const auto path = model::scratch_directory().path() / "input.json";
  std::filesystem::remove(path);  // file systems flush a file that is truncated and rewritten
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

std::vector<std::string> texts(const std::string& json) {
  std::vector<std::string> result;
  for (const Prompt& prompt : read_prompt_file(write_file(json))) {
    EXPECT_FALSE(prompt.ids);
    result.push_back(prompt.text);
  }
  return result;
}

// The message after the file's name.
std::string error_of(const std::string& json) {
  const auto path = write_file(json);
  try {
    read_prompt_file(path);
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find(path.string() + ": "), 0u) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message.substr(path.string().size() + 2);
  }
  return "accepted";
}

using Texts = std::vector<std::string>;

TEST(PromptFile, MayBeOneStringOneObjectOrAListOfBoth) {
  EXPECT_EQ(texts(R"("hello")"), Texts{"hello"});
  EXPECT_EQ(texts(R"({"text": "hello"})"), Texts{"hello"});
  EXPECT_EQ(texts(R"([{"text": "a\nb"}, "\u00e9", ""])"), (Texts{"a\nb", "\xc3\xa9", ""}));
}

TEST(PromptFile, ErrorsNameTheEntry) {
  EXPECT_EQ(error_of(R"(["a", 3])"),
            R"(prompt 1: expected a string or {"text": "..."}, got number)");
  EXPECT_EQ(error_of(R"(["a", "b", {"txt": "c"}])"), R"(prompt 2: has no "text")");
  EXPECT_EQ(error_of(R"({"text": null})"), R"("text" is null, expected a string)");
  EXPECT_EQ(error_of("[]"), "the list has no prompts");
}

TEST(PromptFile, ThatIsNoJsonIsAnErrorInOneLine) {
  for (const char* json :
       {"[\"a\",", "{\"text\": \"a\"", "hello\nworld", "[\"\xff\"]", "\"a\" 1"}) {
    EXPECT_EQ(error_of(json).find("not valid JSON"), 0u) << json;
  }
  EXPECT_NE(error_of(std::string(1 << 20, '[')).find("nested"), std::string::npos);
  EXPECT_NE(error_of(""), "accepted");
}

TEST(PromptFile, ThatDoesNotExistOrIsTooLargeIsAnError) {
  EXPECT_THROW(read_prompt_file("/no/such/file.json"), UserError);
  const auto path = write_file("\"a\"");
  std::filesystem::resize_file(path, (64u << 20) + 1);  // sparse
  EXPECT_THROW(read_prompt_file(path), UserError);
  std::filesystem::remove(path);
}

std::vector<std::string> dataset_texts(const std::string& dataset, const std::string& name,
                                       const std::string& content) {
  const auto file = model::scratch_directory().write(name, content);
  std::vector<std::string> result;
  for (const Prompt& prompt : read_dataset(dataset, file)) result.push_back(prompt.text);
  return result;
}

TEST(Dataset, OfABenchmarkHasAContextAndAnInputOnEachLine) {
  const std::string lines =
      "{\"input\": \"Who?\", \"context\": \"A long\\ntext.\", \"answers\": [\"he\"]}\r\n"
      "\n{\"context\": \"Sum up: ...\", \"input\": \"\", \"id\": 7}\n{\"input\": \"2 + 2\"}";

  for (const char* dataset : {"LongBench", "InfiniteBench"})
    EXPECT_EQ(dataset_texts(dataset, "bench.jsonl", lines),
              (Texts{"A long\ntext.\n\nWho?", "Sum up: ...", "2 + 2"}));
}

TEST(Dataset, OfPromptsIsJsonOrLinesOfIt) {
  EXPECT_EQ(dataset_texts("default", "some.json", R"(["a", "b"])"), (Texts{"a", "b"}));
  const std::string lines = "\"a\"\n{\"text\": \"b\"}\n";
  EXPECT_EQ(dataset_texts("default", "some.jsonl", lines), (Texts{"a", "b"}));
  const auto file = model::scratch_directory().write("itself.jsonl", lines);
  EXPECT_EQ(read_dataset(file.string(), "").at(1).text, "b");
}

std::string dataset_error(const std::string& dataset, const std::string& content) {
  return model::user_error([&] { dataset_texts(dataset, "wrong.jsonl", content); });
}

TEST(Dataset, ErrorsNameFileAndLine) {
  EXPECT_CONTAINS(dataset_error("LongBench", "{\"input\": \"a\"}\n\n{\"answers\": []}"),
                  "wrong.jsonl:3: has neither \"context\" nor \"input\"");
  EXPECT_CONTAINS(dataset_error("LongBench", "\"a\""), "wrong.jsonl:1: expected {\"context\"");
  EXPECT_CONTAINS(dataset_error("InfiniteBench", "{\"context\": 3}"),
                  "wrong.jsonl:1: \"context\" is number, expected a string");
  EXPECT_CONTAINS(dataset_error("default", "\"a\"\n{"), "wrong.jsonl:2: not valid JSON");
  EXPECT_CONTAINS(dataset_error("default", " \n"), "wrong.jsonl: has no prompts");
  EXPECT_CONTAINS(dataset_error("Longbench", "\"a\""), "data_config.dataset \"Longbench\"");
  EXPECT_CONTAINS(
      model::user_error([] { read_dataset("LongBench", model::scratch_directory().path()); }),
      "is a directory");
}

TEST(ParseIds, ReadsDecimalNumbersWithSpacesAroundThem) {
  EXPECT_EQ(parse_ids("1,2,3"), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(parse_ids(" 0 , 2147483647"), (std::vector<int32_t>{0, 2147483647}));
  EXPECT_EQ(parse_ids("7"), std::vector<int32_t>{7});
}

TEST(ParseIds, NamesTheWordThatIsNoId) {
  for (const char* text : {"", ",", "1,", ",1", "1,,2", "a", "1 2", "-1", "2147483648", "1.0",
                           "0x10", "1,2;3", "99999999999999999999"}) {
    EXPECT_THROW(parse_ids(text), UserError) << text;
  }
  try {
    parse_ids("1,two,3");
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(),
                 "token ids \"1,two,3\": \"two\" is no number from 0 to 2147483647; write ids as "
                 "1,2,3");
  }
}

}  // namespace
}  // namespace troupe::launcher
