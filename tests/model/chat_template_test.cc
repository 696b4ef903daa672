#include "model/chat_template.h"

#include <cstdlib>

#include "tests/model/files.h"

namespace troupe::model {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

const fs::path kTemplates = source_file("tests/model/chat_templates");

const ordered_json& expected() {
  static const ordered_json json = ordered_json::parse(read_file(kTemplates / "expected.json"));
  return json;
}

// What `source` renders; "refused: ..." when it does not.
std::string rendered(const std::string& source, const Conversation& conversation) {
  const TemporaryDirectory directory;
  directory.write("chat_template.jinja", source);
  directory.write("tokenizer_config.json", expected().at("special_tokens").dump());
  try {
    return ChatTemplate::of_checkpoint(directory.path()).render(conversation);
  } catch (const UserError& error) {
    return std::string("refused: ") + error.what();
  }
}

std::string error_of(const std::string& source) {
  const std::string text = rendered(source, {});
  EXPECT_TRUE(text.starts_with("refused: ")) << text;
  return text;
}

Conversation conversation_of(const ordered_json& fields) {
  Conversation conversation;
  conversation.messages = fields.at("messages");
  conversation.now = expected().at("now").get<std::time_t>();
  if (fields.contains("tools")) conversation.tools = fields.at("tools");
  if (fields.contains("variables")) conversation.variables = fields.at("variables");
  conversation.add_generation_prompt = fields.value("add_generation_prompt", true);
  return conversation;
}

class PublishedTemplate : public testing::TestWithParam<const char*> {};

TEST_P(PublishedTemplate, RendersEveryConversationAsJinja2Does) {
  const std::string source = read_file(kTemplates / (std::string(GetParam()) + ".jinja"));
  int compared = 0;
  for (const auto& [name, fields] : expected().at("cases").items()) {
    const ordered_json& reference = expected().at("templates").at(GetParam()).at(name);
    const std::string text = rendered(source, conversation_of(fields));
    if (reference.contains("error")) {
      EXPECT_TRUE(text.starts_with("refused: ")) << name << " gives " << text;
      continue;
    }
    EXPECT_EQ(text, reference.at("text")) << name;
    ++compared;
  }
  EXPECT_GE(compared, 8);
}

INSTANTIATE_TEST_SUITE_P(Of, PublishedTemplate,
                         testing::Values("deepseek_v3", "deepseek_r1", "deepseek_v3_1", "kimi_k2",
                                         "gpt_oss", "qwen3_moe", "glm_4_6"),
                         [](const auto& test) { return test.param; });

TEST(ChatTemplate, UnderstandsTheLanguageAsJinja2Does) {
  for (const auto& [name, snippet] : expected().at("snippets").items())
    EXPECT_EQ(rendered(snippet.at("source"), {}), snippet.at("text")) << name;
}

TEST(ChatTemplate, OfTheShippedModelOpensAnAnswer) {
  const ChatTemplate chat = ChatTemplate::of_checkpoint(source_file("models/tiny-moe"));
  Conversation conversation;
  conversation.messages = {{{"role", "user"}, {"content", "Hi"}}};
  EXPECT_EQ(chat.render(conversation), "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>");
}

TEST(ChatTemplate, IsTheDefaultOfSeveralInTheTokenizerConfig) {
  const TemporaryDirectory directory;
  directory.write("tokenizer_config.json", R"({"chat_template": [
    {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]})");
  EXPECT_EQ(ChatTemplate::of_checkpoint(directory.path()).render({}), "plain");
}

TEST(ChatTemplate, AFileOfItsOwnWinsOverTheTokenizerConfig) {
  const TemporaryDirectory directory;
  directory.write("tokenizer_config.json", R"({"chat_template": "old", "bos_token": "<B>"})");
  const fs::path file = directory.write("chat_template.jinja", "{{ bos_token }}new");
  EXPECT_EQ(ChatTemplate::of_checkpoint(directory.path()).render({}), "<B>new");
  EXPECT_EQ(ChatTemplate::of_file(file, directory.path()).render({}), "<B>new");
}

TEST(ChatTemplate, ThatIsMissingIsAskedFor) {
  const TemporaryDirectory directory;
  EXPECT_CONTAINS(user_error([&] { ChatTemplate::of_checkpoint(directory.path()); }),
                  "--chat-template");
}

TEST(ChatTemplate, OutsideOfTheSubsetNamesFileLineAndWhat) {
  EXPECT_CONTAINS(error_of("a\n{% include 'x' %}"),
                  "chat_template.jinja: chat template: line 2: the statement 'include' is not");
  EXPECT_CONTAINS(error_of("{{ 1 | frobnicate }}"), "line 1: the filter 'frobnicate' is not");
  EXPECT_CONTAINS(error_of("{{ 1 is prime }}"), "line 1: the test 'prime' is not supported");
  EXPECT_CONTAINS(error_of("\n\n{{ 'a'.swapcase() }}"), "line 3: undefined cannot be called");
}

TEST(ChatTemplate, ThatIsBrokenSaysWhere) {
  EXPECT_CONTAINS(error_of("{% if x %}"), "'endif' expected");
  EXPECT_CONTAINS(error_of("{% endfor %}"), "'endfor' without its beginning");
  EXPECT_CONTAINS(error_of("x\n{{ 'abc"), "line 2: a string without its end");
  EXPECT_CONTAINS(error_of("{{ a"), "a tag without its end");
  EXPECT_CONTAINS(error_of("{# a"), "a comment without its end");
  EXPECT_CONTAINS(error_of("{{ 1 + }}"), "begins no expression");
  EXPECT_CONTAINS(error_of("{{ x.y }}"), "undefined has no 'y'");
  EXPECT_CONTAINS(error_of("{{ 'a' + 1 }}"), "cannot be added");
  EXPECT_CONTAINS(error_of("{{ 1 // 0 }}"), "division by zero");
}

TEST(ChatTemplate, RefusesAConversationInItsOwnWords) {
  EXPECT_CONTAINS(error_of("{{ raise_exception('roles must alternate') }}"),
                  "refuses the conversation: roles must alternate");
}

std::string repeated(const std::string& text, int count) {
  std::string out;
  for (int i = 0; i < count; ++i) out += text;
  return out;
}

TEST(ChatTemplate, ThatIsHostileEnds) {
  EXPECT_CONTAINS(error_of("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "too deeply");
  EXPECT_CONTAINS(error_of("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
                           "{% endfor %}"),
                  "too many steps");
  EXPECT_CONTAINS(error_of("{% set ns = namespace(s='0123456789') %}{% for a in range(99) %}"
                           "{% set ns.s = ns.s + ns.s %}{% endfor %}"),
                  "writes too much");
  EXPECT_CONTAINS(error_of("{{ range(1000000000) }}"), "range: too long");
  EXPECT_CONTAINS(error_of("{% set n = namespace() %}{% set n.me = n %}{{ n.me }}"), "too deeply");
  EXPECT_CONTAINS(error_of("{{ " + repeated("(", 100'000) + " }}"), "too deeply");
  EXPECT_CONTAINS(error_of("{{ " + repeated("[", 100'000) + " }}"), "too deeply");
  EXPECT_CONTAINS(error_of(repeated("{% if 1 %}", 100'000)), "too deeply");
  EXPECT_CONTAINS(error_of("{{ " + repeated("not ", 100'000) + "1 }}"), "too deeply");
  EXPECT_CONTAINS(error_of(repeated("x", 2'000'000)), "are no chat template");
}

}  // namespace
}  // namespace troupe::model
